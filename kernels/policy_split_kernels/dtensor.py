"""Sharded weights of an LM head: DTensors as FSDP2 and tensor parallelism make them, to plain tensors."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor
    from typing_extensions import TypeIs


def plain_tensors(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, process_group: "dist.ProcessGroup | None"
) -> tuple[Tensor, Tensor, Tensor | None]:
    """hidden, weight and bias without DTensors, differentiable.

    weight and bias without a process_group: gathered, and their gradients averaged over the mesh, whose ranks have
    tokens of their own. With one: this rank's rows, which must lie along it. ValueError for any other placement.
    """
    if not any(map(is_dtensor, (hidden, weight, bias))):
        return hidden, weight, bias
    if is_dtensor(hidden):
        if not all(placement.is_replicate() for placement in hidden.placements):
            raise ValueError(
                f"hidden is a DTensor with placements {hidden.placements}; pass each rank's own tokens as a plain "
                f"tensor (hidden.to_local()), or a replicated one"
            )
        hidden = hidden.to_local()

    def plain(name: str, x: Tensor) -> Tensor:
        return _gathered(name, x) if process_group is None else _own_rows(name, x, process_group)

    return hidden, plain("weight", weight), None if bias is None else plain("bias", bias)


def is_dtensor(x: object) -> "TypeIs[DTensor]":
    if not isinstance(x, Tensor) or type(x) in (Tensor, torch.nn.Parameter) or not dist.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(x, DTensor)


def _gathered(name: str, x: Tensor) -> Tensor:
    """The whole of x; in backward each rank's gradient is its share of a mean, and is sent to where the rows lie."""
    if not is_dtensor(x):
        return x
    from torch.distributed.tensor import Partial, Replicate

    if any(placement.is_partial() for placement in x.placements):
        raise ValueError(f"{name} is a DTensor with placements {x.placements}; a partial sum is no weight")
    mesh = x.device_mesh
    whole = x.redistribute(placements=[Replicate()] * mesh.ndim)
    return _share(whole.to_local(grad_placements=[Partial()] * mesh.ndim), mesh.size())


def _own_rows(name: str, x: Tensor, process_group: "dist.ProcessGroup") -> Tensor:
    if not is_dtensor(x):
        return x
    ranks = dist.get_process_group_ranks(process_group)
    for dim, placement in enumerate(x.placements):
        along = dist.get_process_group_ranks(x.device_mesh.get_group(dim)) == ranks
        if not (placement.is_shard(0) if along else placement.is_replicate()):
            break
    else:
        return x.to_local()
    raise ValueError(
        f"{name} is a DTensor with placements {x.placements}; with a process_group its rows must be sharded along that "
        f"group, Shard(0), and along nothing else"
    )


class _Share(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: int) -> Tensor:
        ctx.ranks = ranks
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad / ctx.ranks, None


_share: Callable[[Tensor, int], Tensor] = _Share.apply
