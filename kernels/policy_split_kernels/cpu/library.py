"""The C++ library: finding, opening and typing it (ctypes), and its structures from tensors.

ctypes releases the interpreter's lock during a call; the number of threads is torch's.
"""

import ctypes
import functools
import math
import warnings
from pathlib import Path

import torch
from torch import Tensor

from ..contract import IGNORE_INDEX, statistics_dtype

INTERFACE_VERSION = 5
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
_FOLDER = Path(__file__).parent


class Matrix(ctypes.Structure):
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


class Statistics(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in ("logprobs", "entropy", "row_max", "log_sum"))


class Loss(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("advantages", "old_logprobs", "ref_logprobs", "sampler_logprobs")),
        *((name, ctypes.c_void_p) for name in ("weights", "entropy_coef", "kl_coef")),
        *((name, ctypes.c_int64) for name in ("surrogate", "kl_weighted")),
        *((name, ctypes.c_double) for name in ("clip_low", "clip_high", "clip_delta", "sampler_cap")),
        *((name, ctypes.c_double) for name in ("sapo_positive", "sapo_negative", "kl_cap")),
        *((name, ctypes.c_void_p) for name in ("losses", "kl", "clipped", "grad_logprobs", "grad_entropy")),
    )


class Divergence(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_void_p)
        for name in ("kl_ab", "kl_ba", "entropy_a", "entropy_b", "max_a", "log_sum_a", "max_b", "log_sum_b")
    )


class Mixture(ctypes.Structure):
    _fields_ = (
        ("beta", ctypes.c_double),
        *(
            (name, ctypes.c_void_p)
            for name in ("divergence", "kl_a", "kl_b", "max_a", "log_sum_a", "max_b", "log_sum_b")
        ),
    )


class PairUpstream(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in ("kl_ab", "kl_ba", "entropy_a", "entropy_b"))


@functools.cache
def opened() -> ctypes.CDLL | None:
    """The library for this CPU's instruction set, or None (`why_missing` says why)."""
    best = {"AVX512": 2, "AVX2": 1}.get(torch.backends.cpu.get_cpu_capability(), 0)
    for instruction_set in ("default", "avx2", "avx512")[best::-1]:
        found = load_library(instruction_set)
        if found is not None:
            return found
    return None


def loaded() -> ctypes.CDLL:
    """The library, to be called; RuntimeError where there is none."""
    found = opened()
    if found is None:
        raise RuntimeError(why_missing())
    return found


def why_missing() -> str:
    return (
        f"the native library is not in {_FOLDER} (it is built at installation by a C++ compiler with OpenMP: "
        f"reinstall with pip install --verbose --force-reinstall --no-deps policy-split to see why the build failed)"
    )


def load_library(instruction_set: str) -> ctypes.CDLL | None:
    """Open one of "default", "avx2", "avx512"; None where it was not built. The CPU must have the instructions."""
    path = _FOLDER / f"libpolicy_split_kernels_{instruction_set}.so"
    if not path.exists():
        return None
    try:
        return _typed(ctypes.CDLL(str(path)), path)
    except OSError as error:  # no OpenMP runtime, or built for another machine
        warnings.warn(f"{path} cannot be opened: {error}", RuntimeWarning, stacklevel=2)
        return None


def _typed(opened: ctypes.CDLL, path: Path) -> ctypes.CDLL | None:
    opened.ps_interface_version.restype = ctypes.c_int64
    if opened.ps_interface_version() != INTERFACE_VERSION:
        warnings.warn(
            f"{path} was built from other sources than this package; reinstall it", RuntimeWarning, stacklevel=2
        )
        return None
    pointer, matrix = ctypes.c_void_p, ctypes.POINTER(Matrix)
    statistics, loss = ctypes.POINTER(Statistics), ctypes.POINTER(Loss)
    opened.ps_instruction_set.restype = ctypes.c_char_p
    opened.ps_logprobs_entropy.argtypes = (matrix, statistics)
    opened.ps_dual_mode_loss.argtypes = (matrix, statistics, loss)
    opened.ps_logprobs_entropy_gradient.argtypes = (matrix, statistics, pointer, pointer, pointer)
    opened.ps_scale_rows.argtypes = (matrix, pointer)
    divergence, upstream = ctypes.POINTER(Divergence), ctypes.POINTER(PairUpstream)
    opened.ps_divergence.argtypes = (matrix, matrix, divergence)
    opened.ps_divergence_gradient.argtypes = (matrix, matrix, divergence, upstream)
    mixture = ctypes.POINTER(Mixture)
    opened.ps_jensen_shannon.argtypes = (matrix, matrix, mixture)
    opened.ps_jensen_shannon_gradient.argtypes = (matrix, matrix, mixture, pointer)
    pairs = ("ps_divergence", "ps_divergence_gradient", "ps_jensen_shannon", "ps_jensen_shannon_gradient")
    for name in ("ps_scale_rows", *pairs):
        getattr(opened, name).restype = None
    for name in ("ps_logprobs_entropy", "ps_dual_mode_loss", "ps_logprobs_entropy_gradient"):
        getattr(opened, name).restype = ctypes.c_int64
    return opened


def vectors(logits: Tensor, count: int) -> list[Tensor]:
    first = torch.empty(logits.shape[0] * logits.shape[1], dtype=statistics_dtype(logits.dtype))
    return [first, *(torch.empty_like(first) for _ in range(count - 1))]


def pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def or_nan(x: float | None) -> float:
    return math.nan if x is None else x


def matrix_of(
    logits: Tensor,
    grad_logits: Tensor | None,
    targets: Tensor | None,
    inverse_temperature: Tensor | None,
    mask: Tensor | None,
    softcap: float | None,
    keep_mask: Tensor | None,
) -> Matrix:
    batches, rows_per_batch, vocabulary = logits.shape
    return Matrix(
        pointer(logits), pointer(grad_logits), batches * rows_per_batch, rows_per_batch, vocabulary,
        logits.stride(0), logits.stride(1), *((0, 0) if grad_logits is None else grad_logits.stride()[:2]),
        pointer(targets), pointer(mask), IGNORE_INDEX, pointer(inverse_temperature),
        0 if inverse_temperature is None or inverse_temperature.numel() == 1 else 1,
        or_nan(softcap), pointer(keep_mask), *((0, 0) if keep_mask is None else keep_mask.stride()[:2]),
        _DTYPES[logits.dtype], torch.get_num_threads(),
    )  # fmt: skip
