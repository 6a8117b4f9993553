"""Weights that FSDP2 has split over the processes: gathered to generate, whole in a checkpoint."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import fsdp2_prepare_model
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """The whole weights in every process: no forward inside waits for another process.

    Generation needs it, as responses end after different numbers of tokens. The memory is that of the whole model in
    the dtype it computes in. A model that is not sharded is left as it is.
    """
    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    before = [_reshards(unit) for unit in units]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit, reshards in zip(units, before, strict=True):
            unit.reshard()
            unit.set_reshard_after_forward(reshards, recurse=False)


def _reshards(unit: FSDPModule) -> bool:
    """Torch lets it be set, not read."""
    return any(group._reshard_after_forward for group in unit._get_fsdp_state()._fsdp_param_groups)


def shard_frozen(accelerator: Accelerator, model: nn.Module) -> nn.Module:
    """A model that only scores, sharded as accelerate shards the one that trains; it keeps nothing after a forward."""
    sharded: nn.Module = fsdp2_prepare_model(accelerator, model)
    assert isinstance(sharded, FSDPModule)
    sharded.set_reshard_after_forward(True)
    return sharded


def whole(state: Any, *, keep: bool) -> Any:
    """A nested state with its shards put together, on the CPU; None in their place where `keep` is False.

    Every process must call it with the same state. One tensor is whole at a time on the device.
    """
    if isinstance(state, DTensor):
        full = state.full_tensor()
        return full.cpu() if keep else None
    if isinstance(state, Mapping):
        return {key: whole(value, keep=keep) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(whole(value, keep=keep) for value in state)
    return state


def sharded_like(tensor: torch.Tensor, like: Any) -> torch.Tensor:
    """This process's part of a tensor that every process has whole, where `like` is sharded; else the tensor."""
    if not isinstance(like, DTensor):
        return tensor
    device = like.to_local().device
    return distribute_tensor(tensor.to(device), like.device_mesh, like.placements, src_data_rank=None)


def load_weights(own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> None:
    """Copy a state into the tensors of a `state_dict`; ValueError if the weights are those of another model."""
    shapes = {name: (tuple(value.shape), tuple(own[name].shape)) for name, value in state.items() if name in own}
    wrong = [f"{name} {then} -> {now}" for name, (then, now) in shapes.items() if then != now]
    wrong += [f"{name} is there no more" for name in state.keys() - own.keys()]
    wrong += [f"{name} was not there" for name in own.keys() - state.keys()]
    if wrong:
        said = "; ".join(sorted(wrong)[:3])
        raise ValueError(f"the checkpoint's weights are not those of this model, {len(wrong)} of them differ: {said}")
    with torch.no_grad():
        for name, value in state.items():
            own[name].copy_(sharded_like(value, own[name]))


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """The state of `Optimizer.state_dict`, its tensors of a parameter's shape sharded as that parameter is."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {
        number: {
            name: sharded_like(value, parameters[number]) if _is_of(value, parameters[number]) else value
            for name, value in values.items()
        }
        for number, values in state["state"].items()
    }
    optimizer.load_state_dict(state | {"state": moments})


def _is_of(value: Any, parameter: torch.Tensor) -> bool:
    return isinstance(value, torch.Tensor) and value.shape == parameter.shape
