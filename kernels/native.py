"""The C++ library: finding, opening and typing it (ctypes), and the operations of `reference` by it, on CPU tensors.

ctypes releases the interpreter's lock during a call; the number of threads is torch's.
"""

import ctypes
import functools
import math
import warnings
from pathlib import Path

import torch
from torch import Tensor

from .reference import IGNORE_INDEX, statistics_dtype, target_out_of_range
from .reference_loss import SURROGATES, LossRows, RowStatistics

INTERFACE_VERSION = 2
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
_FOLDER = Path(__file__).parent


class _Matrix(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("logits", "grad_logits")),
        *((name, ctypes.c_int64) for name in ("rows", "rows_per_batch", "vocabulary")),
        *((name, ctypes.c_int64) for name in ("stride_b", "stride_t", "grad_stride_b", "grad_stride_t")),
        *((name, ctypes.c_void_p) for name in ("targets", "mask")),
        ("ignore_index", ctypes.c_int64),
        ("inverse_temperature", ctypes.c_void_p),
        ("inverse_temperature_stride", ctypes.c_int64),
        ("softcap", ctypes.c_double),
        ("keep", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("keep_stride_b", "keep_stride_t")),
        ("dtype", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    )


class _Statistics(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in ("logprobs", "entropy", "row_max", "log_sum"))


class _Loss(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("advantages", "old_logprobs", "ref_logprobs", "sampler_logprobs")),
        *((name, ctypes.c_void_p) for name in ("weights", "entropy_coef", "kl_coef")),
        ("surrogate", ctypes.c_int64),
        *((name, ctypes.c_double) for name in ("clip_low", "clip_high", "clip_delta", "sampler_cap")),
        *((name, ctypes.c_void_p) for name in ("losses", "kl", "clipped", "grad_logprobs", "grad_entropy")),
    )


@functools.cache
def library() -> ctypes.CDLL | None:
    """The library for this CPU's instruction set, or None (`why_missing` says why)."""
    best = {"AVX512": 2, "AVX2": 1}.get(torch.backends.cpu.get_cpu_capability(), 0)
    for instruction_set in ("default", "avx2", "avx512")[best::-1]:
        opened = load_library(instruction_set)
        if opened is not None:
            return opened
    return None


def why_missing() -> str:
    return (
        f"the native library is not in {_FOLDER} (it is built at installation by a C++ compiler with OpenMP: "
        f"reinstall with pip install --verbose --force-reinstall --no-deps policy-split to see why the build failed)"
    )


def load_library(instruction_set: str) -> ctypes.CDLL | None:
    """Open one of "default", "avx2", "avx512"; None where it was not built. The CPU must have the instructions."""
    path = _FOLDER / f"libpolicy_split_kernels_{instruction_set}.so"
    return _typed(ctypes.CDLL(str(path)), path) if path.exists() else None


def _typed(opened: ctypes.CDLL, path: Path) -> ctypes.CDLL | None:
    opened.ps_interface_version.restype = ctypes.c_int64
    if opened.ps_interface_version() != INTERFACE_VERSION:
        warnings.warn(
            f"{path} was built from other sources than this package; reinstall it", RuntimeWarning, stacklevel=2
        )
        return None
    pointer, matrix = ctypes.c_void_p, ctypes.POINTER(_Matrix)
    statistics, loss = ctypes.POINTER(_Statistics), ctypes.POINTER(_Loss)
    opened.ps_instruction_set.restype = ctypes.c_char_p
    opened.ps_logprobs_entropy.argtypes = (matrix, statistics)
    opened.ps_dual_mode_loss.argtypes = (matrix, statistics, loss)
    opened.ps_logprobs_entropy_gradient.argtypes = (matrix, statistics, pointer, pointer)
    opened.ps_scale_rows.argtypes = (matrix, pointer)
    opened.ps_scale_rows.restype = None
    for name in ("ps_logprobs_entropy", "ps_dual_mode_loss", "ps_logprobs_entropy_gradient"):
        getattr(opened, name).restype = ctypes.c_int64
    return opened


def logprobs_entropy(
    logits: Tensor,
    targets: Tensor,
    inverse_temperature: Tensor,
    mask: Tensor | None,
    softcap: float | None,
    keep_mask: Tensor | None,
) -> RowStatistics:
    out = RowStatistics(*_vectors(logits, 4))
    matrix = _matrix(logits, None, targets, inverse_temperature, mask, softcap, keep_mask)
    _check(library().ps_logprobs_entropy(matrix, _statistics(out)), targets, logits)
    return out


def logprobs_entropy_gradient(
    logits: Tensor,
    targets: Tensor,
    inverse_temperature: Tensor,
    mask: Tensor | None,
    softcap: float | None,
    keep_mask: Tensor | None,
    row_max: Tensor,
    log_sum: Tensor,
    entropy: Tensor,
    grad_logprobs: Tensor,
    grad_entropy: Tensor,
    grad_logits: Tensor,
) -> None:
    matrix = _matrix(logits, grad_logits, targets, inverse_temperature, mask, softcap, keep_mask)
    statistics = _Statistics(None, _pointer(entropy), _pointer(row_max), _pointer(log_sum))
    row = library().ps_logprobs_entropy_gradient(matrix, statistics, _pointer(grad_logprobs), _pointer(grad_entropy))
    _check(row, targets, logits)


def dual_mode_loss(
    logits: Tensor,
    targets: Tensor,
    inverse_temperature: Tensor,
    mask: Tensor | None,
    softcap: float | None,
    keep_mask: Tensor | None,
    advantages: Tensor,
    old_logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    sampler_logprobs: Tensor | None,
    weights: Tensor,
    entropy_coef: Tensor,
    kl_coef: Tensor,
    surrogate: str,
    clip_low: float,
    clip_high: float,
    clip_delta: float | None,
    sampler_cap: float,
    grad_logits: Tensor | None,
) -> LossRows:
    clipped = torch.empty(targets.shape, dtype=torch.bool)
    losses, logprobs, entropy, kl, *rest = _vectors(logits, 8)
    out = LossRows(losses, logprobs, entropy, kl, clipped, *rest)
    loss = _Loss(
        _pointer(advantages), _pointer(old_logprobs), _pointer(ref_logprobs), _pointer(sampler_logprobs),
        _pointer(weights), _pointer(entropy_coef), _pointer(kl_coef), SURROGATES.index(surrogate),
        clip_low, clip_high, _or_nan(clip_delta), sampler_cap,
        _pointer(out.losses), _pointer(kl), _pointer(clipped),
        _pointer(out.grad_logprobs), _pointer(out.grad_entropy),
    )  # fmt: skip
    matrix = _matrix(logits, grad_logits, targets, inverse_temperature, mask, softcap, keep_mask)
    _check(library().ps_dual_mode_loss(matrix, _statistics(out), loss), targets, logits)
    return out


def scale_rows_(x: Tensor, scale: Tensor) -> None:
    matrix = _matrix(x, x, None, None, None, None, None)
    library().ps_scale_rows(matrix, _pointer(scale))


def _vectors(logits: Tensor, count: int) -> list[Tensor]:
    rows = logits.shape[0] * logits.shape[1]
    return [torch.empty(rows, dtype=statistics_dtype(logits.dtype)) for _ in range(count)]


def _pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _or_nan(x: float | None) -> float:
    return math.nan if x is None else x


def _statistics(out: RowStatistics | LossRows) -> _Statistics:
    return _Statistics(*map(_pointer, (out.logprobs, out.entropy, out.row_max, out.log_sum)))


def _matrix(
    logits: Tensor,
    grad_logits: Tensor | None,
    targets: Tensor | None,
    inverse_temperature: Tensor | None,
    mask: Tensor | None,
    softcap: float | None,
    keep_mask: Tensor | None,
) -> _Matrix:
    batches, rows_per_batch, vocabulary = logits.shape
    return _Matrix(
        _pointer(logits), _pointer(grad_logits), batches * rows_per_batch, rows_per_batch, vocabulary,
        logits.stride(0), logits.stride(1), *((0, 0) if grad_logits is None else grad_logits.stride()[:2]),
        _pointer(targets), _pointer(mask), IGNORE_INDEX, _pointer(inverse_temperature),
        0 if inverse_temperature is None or inverse_temperature.numel() == 1 else 1,
        _or_nan(softcap), _pointer(keep_mask), *((0, 0) if keep_mask is None else keep_mask.stride()[:2]),
        _DTYPES[logits.dtype], torch.get_num_threads(),
    )  # fmt: skip


def _check(row: int, targets: Tensor, logits: Tensor) -> None:
    if row >= 0:
        raise target_out_of_range(row, int(targets[row]), logits.shape[-1])
