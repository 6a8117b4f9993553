"""What the LM head's functions check of their arguments, and the call that they make of them."""

import functools
import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ..contract import TargetOutsideVocabulary, check_targets, valid_rows
from ..dtensor import plain_tensors
from ..rows import DTYPES, inverse_temperature_vector, keep_rows, mask_vector, softcap_value, target_vector
from ..vocab_parallel import vocab_shard
from ..watchers import check_unfollowed
from .call import HeadArguments, LinearCall


def linear_call(
    hidden: Tensor,  # (..., D)
    weight: Tensor,  # (V, D)
    targets: Tensor,  # (...)
    bias: Tensor | None,  # (V,)
    temperature: float | Tensor,
    mask: Tensor | None,  # (...)
    softcap: float | None,
    keep_mask: Tensor | None,  # (..., V)
    logit_scale: float,
    logits_dtype: torch.dtype | None,
    chunk_bytes: int | None,
    process_group: "dist.ProcessGroup | None",
    batch_invariant: bool = False,
) -> LinearCall:
    _check_tensors(hidden, weight, bias)
    instead = "compute logits = torch.nn.functional.linear(hidden, weight, bias) and take the function of logits"
    check_unfollowed("an LM head", instead, hidden, weight, bias, temperature=temperature)
    hidden, weight, bias = plain_tensors(hidden, weight, bias, process_group)
    operand_dtype = _operand_dtype(hidden, weight, bias)
    _check_settings(logit_scale, logits_dtype, chunk_bytes, batch_invariant, operand_dtype)
    like = torch.empty((), dtype=operand_dtype, device=hidden.device).expand(*hidden.shape[:-1], len(weight))
    softcap = softcap_value(softcap)
    # logit_scale * z = softcap' * tanh(z / softcap') / temperature' with both divided by it
    rows = (
        target_vector(targets, like),
        inverse_temperature_vector(temperature, like) * logit_scale,
        mask_vector(mask, like),
        None if softcap is None else softcap / logit_scale,
        keep_rows(keep_mask, like),
    )
    shard = None if process_group is None else vocab_shard(len(weight), hidden.device, process_group)
    try:  # before the first product, and not as a row of some chunk
        check_targets(rows[0], valid_rows(rows[0], rows[2]), len(weight) if shard is None else shard.total)
    except TargetOutsideVocabulary as error:
        raise error.at(targets) from None

    arguments = HeadArguments(*rows, operand_dtype, logits_dtype, chunk_bytes, batch_invariant)
    return LinearCall(hidden.reshape(-1, hidden.shape[-1]), weight, bias, arguments, shard, like)


def _check_tensors(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    for name, x in (("hidden", hidden), ("weight", weight), *((("bias", bias),) if bias is not None else ())):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
        if x.dtype not in DTYPES:
            raise TypeError(f"{name} must be one of {', '.join(map(str, DTYPES))}, got {x.dtype}")
        if x.device != hidden.device:
            raise ValueError(f"{name} is on {x.device}, hidden is on {hidden.device}; expected the same device")
    if hidden.dim() < 1 or weight.dim() != 2 or hidden.shape[-1] != weight.shape[1] or 0 in weight.shape:
        raise ValueError(
            f"hidden must be (..., D) and weight (V, D) with V, D >= 1, got shapes {tuple(hidden.shape)} and "
            f"{tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"bias must have shape {tuple(weight.shape[:1])}, one number a row of weight, got {tuple(bias.shape)}"
        )


def _operand_dtype(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> torch.dtype:
    """What the factors are rounded or widened to: autocast's dtype (float64 is left alone, as by torch), else the one
    that torch promotes theirs to."""
    dtypes = [x.dtype for x in (hidden, weight, bias) if x is not None]
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and torch.float64 not in dtypes:
        return torch.get_autocast_dtype(device)
    return functools.reduce(torch.promote_types, dtypes)


def _check_settings(
    logit_scale: float,
    logits_dtype: torch.dtype | None,
    chunk_bytes: int | None,
    batch_invariant: bool,
    operand_dtype: torch.dtype,
) -> None:
    if not isinstance(batch_invariant, bool):
        raise TypeError(f"batch_invariant must be a bool, got {batch_invariant!r}")
    if not 0 < logit_scale < math.inf:
        raise ValueError(f"logit_scale must be finite and > 0, got {logit_scale}")
    allowed: Sequence[torch.dtype | None] = (None, operand_dtype)
    if operand_dtype.itemsize < 4:
        allowed = (*allowed, torch.float32)
    if logits_dtype not in allowed:
        raise ValueError(f"logits_dtype must be one of {', '.join(map(str, allowed))} here, got {logits_dtype}")
    if chunk_bytes is not None and (type(chunk_bytes) is not int or chunk_bytes < 1):
        raise ValueError(f"chunk_bytes must be a positive integer, or None, got {chunk_bytes!r}")
