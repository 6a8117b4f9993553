"""Logits that are a DTensor: each process computes its part, and the results are DTensors over the same mesh."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .dtensor import is_dtensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor, Placement


class Layout(NamedTuple):
    logits: "DTensor"
    tokens: "tuple[Placement, ...]"  # of what belongs to a token: as the logits, and the same along a split vocabulary
    group: "dist.ProcessGroup | None"  # over which the vocabulary is split

    def whole(self, x: Tensor) -> Tensor:
        """Of this process's part of the tokens, the DTensor."""
        from torch.distributed.tensor import DTensor

        shape = self.logits.shape[:-1]
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(x, self.logits.device_mesh, self.tokens, run_check=False, shape=shape, stride=stride)

    def own(self, name: str, x: Any, placements: "tuple[Placement, ...] | None" = None) -> Any:
        """This process's part of an argument, which must be laid out as the logits are; a number is everywhere."""
        expected = placements or self.tokens
        if x is None or not isinstance(x, Tensor) or (x.numel() == 1 and not is_dtensor(x)):
            return x
        if not is_dtensor(x) or x.placements != expected or x.device_mesh != self.logits.device_mesh:
            given = f"a DTensor with placements {x.placements}" if is_dtensor(x) else "a plain tensor"
            raise ValueError(
                f"{name} is {given}, and logits a DTensor with placements {self.logits.placements}; expected {name} "
                f"with placements {expected} on its mesh: torch.distributed.tensor.distribute_tensor makes it of a "
                f"whole tensor, redistribute of another DTensor"
            )
        return x.to_local()


def layout_of(logits: "DTensor", process_group: object) -> Layout:
    """ValueError for logits that no process can compute a part of."""
    from torch.distributed.tensor import Replicate, Shard

    placements, vocabulary = logits.placements, logits.dim() - 1
    if process_group is not None:
        raise ValueError("process_group: a DTensor of logits says itself over which processes its vocabulary is split")
    split = [dim for dim, placement in enumerate(placements) if placement.is_shard(vocabulary)]
    if len(split) > 1 or not all(type(placement) in (Shard, Replicate) for placement in placements):
        raise ValueError(
            f"logits is a DTensor with placements {placements}; expected Replicate and Shard, the vocabulary along one "
            f"dimension of the mesh at most: logits.redistribute(placements=...) first"
        )
    tokens = tuple(Replicate() if dim in split else placement for dim, placement in enumerate(placements))
    return Layout(logits, tokens, logits.device_mesh.get_group(split[0]) if split else None)


def by_shards(
    function: Callable[..., tuple[Tensor, ...]],
    logits: "DTensor",
    targets: Tensor,
    temperature: float | Tensor,
    mask: Tensor | None,
    softcap: float | None,
    keep_mask: Tensor | None,
    process_group: object,
) -> list[Tensor]:
    """function(logits, targets, ...) of every process's part, differentiable in the logits."""
    layout = layout_of(logits, process_group)
    out = function(
        logits.to_local(),
        layout.own("targets", targets),
        temperature=layout.own("temperature", temperature),
        mask=layout.own("mask", mask),
        softcap=softcap,
        keep_mask=layout.own("keep_mask", keep_mask, logits.placements),
        process_group=layout.group,
    )
    return [layout.whole(x) for x in out]
