"""From what callers have (any leading shape) to what the kernels take (rows and per-row vectors), with the checks."""

import math
from typing import Any

import torch
from torch import Tensor

from .contract import ELSEWHERE, statistics_dtype, valid_rows
from .dtensor import is_dtensor
from .watchers import can_ask, in_transform, lies_in_memory

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def as_rows(logits: Tensor) -> Tensor:
    """View logits (..., V) as (B, T, V) with a contiguous vocabulary; copies only where no such view exists."""
    if not isinstance(logits, Tensor):
        raise TypeError(f"logits must be a tensor, got {type(logits).__name__}")
    if logits.dtype not in DTYPES:
        raise TypeError(f"logits must be one of {', '.join(map(str, DTYPES))}, got {logits.dtype}")
    if logits.layout is not torch.strided or logits.is_nested:
        raise TypeError(f"logits must be a dense, strided tensor, got one of layout {logits.layout}")
    _refuse_dtensor("logits", logits)
    if logits.dim() < 1 or logits.shape[-1] == 0:
        raise ValueError(f"logits must be (..., V) with V >= 1, got shape {tuple(logits.shape)}")
    return _as_three(logits)


def _refuse_dtensor(name: str, x: Tensor) -> None:
    if is_dtensor(x):
        raise ValueError(
            f"{name} is a DTensor with placements {x.placements}; a plain tensor is needed here: {name}.to_local(), "
            f"each process with its own tokens in every argument (and weights=, where a loss is a mean over all of "
            f"them); of logits whose vocabulary is split, with process_group= of that dimension of the mesh"
        )


def rows_lie_apart(logits: Tensor) -> bool:
    """Whether as_rows is a view of memory in which no element appears twice: what a gradient may be written over."""
    if not lies_in_memory(logits):
        return False
    if logits.stride(-1) != 1 or (logits.dim() > 3 and not logits.is_contiguous()):
        return False
    return all(stride > 0 or size <= 1 for stride, size in zip(logits.stride(), logits.shape, strict=True))


def _as_three(x: Tensor) -> Tensor:
    if x.stride(-1) != 1:
        x = x.contiguous()
    if x.dim() == 2:
        return x.unsqueeze(0)
    if x.dim() < 2:
        return x.reshape(1, 1, -1)
    return x if x.dim() == 3 else x.flatten(0, -3)


def token_vector(name: str, x: Tensor, logits: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Check a per-token argument against logits (..., V) and lay it out as (N,)."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor of shape {tuple(logits.shape[:-1])}, got {type(x).__name__}")
    _refuse_dtensor(name, x)
    if x.shape != logits.shape[:-1]:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}; expected {tuple(logits.shape[:-1])}, "
            f"the leading shape of logits {tuple(logits.shape)}"
        )
    if x.device != logits.device:
        raise ValueError(f"{name} is on {x.device}, logits are on {logits.device}; expected the same device")
    if dtype is not None and dtype.is_floating_point and not (x.dtype.is_floating_point or x.dtype in _INTEGERS):
        raise TypeError(f"{name} must hold real numbers, got {x.dtype}")
    return _flat(x, dtype or x.dtype)


def _flat(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x as (N,), contiguous; nothing is called that has nothing to do."""
    if x.dtype != dtype:
        x = x.to(dtype)
    if x.dim() != 1:
        x = x.reshape(-1)
    return x if x.is_contiguous() else x.contiguous()


def target_vector(targets: Tensor, logits: Tensor, name: str = "targets") -> Tensor:
    check_token_ids(name, targets)
    vector = token_vector(name, targets, logits, torch.int64)
    # What the kernels take for ELSEWHERE is to a caller a number outside the vocabulary, as its neighbour is.
    return vector.clamp(min=ELSEWHERE + 1) if targets.dtype == torch.int64 else vector


def check_token_ids(name: str, x: Tensor) -> None:
    if isinstance(x, Tensor) and x.dtype not in _INTEGERS:
        raise TypeError(f"{name} must be integer token ids (int64), got {x.dtype}")


def mask_vector(mask: Tensor | None, logits: Tensor, name: str = "mask") -> Tensor | None:
    if mask is None:
        return None
    mask = token_vector(name, mask, logits)
    return mask if mask.dtype == torch.bool else mask != 0


def float_vector(name: str, x: Tensor | None, logits: Tensor) -> Tensor | None:
    return None if x is None else token_vector(name, x, logits, statistics_dtype(logits.dtype))


def inverse_temperature_vector(temperature: float | Tensor, logits: Tensor) -> Tensor:
    """1 / temperature as (1,) or (N,) in the statistics dtype; raises ValueError unless finite and positive."""
    dtype = statistics_dtype(logits.dtype)
    if not isinstance(temperature, Tensor):
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be finite and > 0, got {temperature}")
        if can_ask(logits):
            return constant((1.0 / temperature,), dtype)
        return torch.full((1,), 1.0 / temperature, dtype=dtype, device=logits.device)
    if temperature.numel() == 1:
        temperature = temperature.to(logits.device).reshape(1)
    else:
        temperature = token_vector("temperature", temperature, logits, dtype)
    if can_ask(temperature) and not bool((temperature > 0).all()):
        raise ValueError(f"temperature must be > 0 in every row, got {float(temperature.min())}")
    return temperature.to(dtype).reciprocal()


def mean_weights(targets: Tensor, mask: Tensor | None, logits: Tensor) -> Tensor:
    """1 / number of valid rows, for each of them: (N,)."""
    valid, dtype = valid_rows(targets, mask), statistics_dtype(logits.dtype)
    if can_ask(valid):
        return torch.full(valid.shape, 1 / max(1, int(valid.count_nonzero())), dtype=dtype)
    return valid.sum().clamp(min=1).to(dtype).reciprocal().expand(targets.shape).contiguous()


def constant(values: tuple[Any, ...], dtype: torch.dtype) -> Tensor:
    """A tensor on the CPU that nobody changes; making one costs as much as a small kernel."""
    made = _constants.get((values, dtype))
    if made is None:
        with torch.inference_mode(False):
            made = torch.tensor(values, dtype=dtype)
        if type(made) is Tensor and not in_transform():  # and no fake
            if len(_constants) > 100:
                _constants.clear()
            _constants[values, dtype] = made
    return made


def softcap_value(softcap: float | None) -> float | None:
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(f"softcap must be finite and > 0, or None, got {softcap}")
    return None if softcap is None else float(softcap)


def keep_rows(keep_mask: Tensor | None, logits: Tensor) -> Tensor | None:
    """View keep_mask (..., V) as the rows of logits (..., V): (B, T, V) bool, the vocabulary contiguous."""
    if keep_mask is None:
        return None
    if not isinstance(keep_mask, Tensor) or keep_mask.dtype != torch.bool:
        raise TypeError(f"keep_mask must be a bool tensor, got {getattr(keep_mask, 'dtype', type(keep_mask).__name__)}")
    if keep_mask.device != logits.device:
        raise ValueError(f"keep_mask is on {keep_mask.device}, logits are on {logits.device}; expected the same device")
    try:
        keep_mask = keep_mask.expand(logits.shape)
    except RuntimeError:
        raise ValueError(
            f"keep_mask has shape {tuple(keep_mask.shape)}; expected {tuple(logits.shape)}, that of logits, "
            f"or one that expands to it"
        ) from None
    return _as_three(keep_mask)


_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

_constants: dict[tuple[tuple[Any, ...], torch.dtype], Tensor] = {}
