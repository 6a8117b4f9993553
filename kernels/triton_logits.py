"""GPU: statistics, gradients and the dual-mode loss from logits. Signatures and meaning are those of `reference`.

A target outside the vocabulary makes its row NaN: raising would synchronise with the host.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .reference import IGNORE_INDEX, LossRows, RowStatistics, statistics_dtype
from .triton_launch import (
    STATISTICS_THREADS,
    STREAMING_THREADS,
    Tiling,
    machine_of,
    on_device,
    resident_options,
    resident_programs,
    row_vector,
    tiling,
)
from .triton_loss import loss_of_statistics
from .triton_rows import fill_row, row_offset, row_statistics, scale_row, write_row_gradient

# Neither the batch nor a slice's alignment may recompile a kernel; only the matrices' pointers are specialised.
_LENGTHS = ["N", "T", "stride_logits_b", "stride_logits_t", "stride_grad_b", "stride_grad_t", "stride_temperature"]
_ROW_VECTORS = [
    "targets_ptr", "inverse_temperature_ptr", "mask_ptr", "row_max_ptr", "log_sum_ptr", "entropy_ptr", "logprobs_ptr",
    "grad_logprobs_ptr", "grad_entropy_ptr", "advantages_ptr", "old_logprobs_ptr", "ref_logprobs_ptr", "weights_ptr",
    "entropy_coef_ptr", "kl_coef_ptr", "losses_ptr", "kl_ptr", "clipped_ptr", "scale_ptr",
]  # fmt: skip
_IGNORED = tl.constexpr(IGNORE_INDEX)


def _jit(function):
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    return triton.jit(function, do_not_specialize=[name for name in names if name in _LENGTHS + _ROW_VECTORS])


@triton.jit
def _row_target(n, targets_ptr, mask_ptr, V: tl.constexpr):
    """Target of row n and whether the row counts; a target outside the vocabulary becomes -1."""
    target = tl.load(targets_ptr + n)
    valid = target != _IGNORED
    if mask_ptr is not None:
        valid = valid & (tl.load(mask_ptr + n) != 0)
    return tl.where((target >= 0) & (target < V), target, -1).to(tl.int32), valid


@_jit
def logprobs_entropy_kernel(
    logits_ptr, targets_ptr, inverse_temperature_ptr, mask_ptr,
    logprobs_ptr, entropy_ptr, row_max_ptr, log_sum_ptr,
    T, stride_logits_b: tl.int64, stride_logits_t: tl.int64, stride_temperature,
    V: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0)
    target, valid = _row_target(n, targets_ptr, mask_ptr, V)
    inverse_temperature = tl.load(inverse_temperature_ptr + n * stride_temperature)
    value = tl.full((), tl.where(valid, float("nan"), 0.0), inverse_temperature.dtype)
    logprob = value
    entropy = value
    row_max = value
    log_sum = value
    if valid & (target >= 0):
        row_ptr = logits_ptr + row_offset(n, T, stride_logits_b, stride_logits_t, VEC)
        logprob, entropy, row_max, log_sum = row_statistics(
            row_ptr, target, inverse_temperature, V, DEPTH, LANES, VEC
        )  # fmt: skip
    tl.store(logprobs_ptr + n, logprob)
    tl.store(entropy_ptr + n, entropy)
    tl.store(row_max_ptr + n, row_max)
    tl.store(log_sum_ptr + n, log_sum)


@_jit
def logprobs_entropy_gradient_kernel(
    logits_ptr, targets_ptr, inverse_temperature_ptr, mask_ptr,
    row_max_ptr, log_sum_ptr, entropy_ptr, grad_logprobs_ptr, grad_entropy_ptr, grad_ptr,
    T, stride_logits_b: tl.int64, stride_logits_t: tl.int64, stride_grad_b: tl.int64, stride_grad_t: tl.int64,
    stride_temperature,
    V: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0)
    target, valid = _row_target(n, targets_ptr, mask_ptr, V)
    grad_row_ptr = grad_ptr + row_offset(n, T, stride_grad_b, stride_grad_t, VEC)
    if valid & (target >= 0):
        write_row_gradient(
            logits_ptr + row_offset(n, T, stride_logits_b, stride_logits_t, VEC), grad_row_ptr, target,
            tl.load(inverse_temperature_ptr + n * stride_temperature),
            tl.load(row_max_ptr + n), tl.load(log_sum_ptr + n), tl.load(entropy_ptr + n),
            tl.load(grad_logprobs_ptr + n), tl.load(grad_entropy_ptr + n),
            V, DEPTH, LANES, VEC,
        )  # fmt: skip
    else:
        fill_row(grad_row_ptr, tl.where(valid, float("nan"), 0.0), V, DEPTH, LANES, VEC)


@_jit
def dual_mode_loss_kernel(
    logits_ptr, targets_ptr, inverse_temperature_ptr, mask_ptr,
    advantages_ptr, old_logprobs_ptr, ref_logprobs_ptr, weights_ptr, entropy_coef_ptr, kl_coef_ptr,
    clip_low: tl.float64, clip_high: tl.float64, clip_delta: tl.float64, grad_ptr,
    losses_ptr, logprobs_ptr, entropy_ptr, kl_ptr, clipped_ptr, row_max_ptr, log_sum_ptr,
    grad_logprobs_ptr, grad_entropy_ptr,
    N, T, stride_logits_b: tl.int64, stride_logits_t: tl.int64, stride_grad_b: tl.int64, stride_grad_t: tl.int64,
    stride_temperature,
    V: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    for n in range(tl.program_id(0), N, tl.num_programs(0)):
        target, valid = _row_target(n, targets_ptr, mask_ptr, V)
        inverse_temperature = tl.load(inverse_temperature_ptr + n * stride_temperature)
        value = tl.full((), tl.where(valid, float("nan"), 0.0), inverse_temperature.dtype)
        loss = value
        logprob = value
        entropy = value
        kl = value
        clipped = valid & False
        row_max = value
        log_sum = value
        grad_logprob = value
        grad_entropy = value
        readable = valid & (target >= 0)
        row_ptr = logits_ptr + row_offset(n, T, stride_logits_b, stride_logits_t, VEC)
        if readable:
            logprob, entropy, row_max, log_sum = row_statistics(
                row_ptr, target, inverse_temperature, V, DEPTH, LANES, VEC
            )  # fmt: skip
            loss, kl, clipped, grad_logprob, grad_entropy = loss_of_statistics(
                n, logprob, entropy, advantages_ptr, old_logprobs_ptr, ref_logprobs_ptr, weights_ptr,
                entropy_coef_ptr, kl_coef_ptr, clip_low, clip_high, clip_delta,
            )  # fmt: skip
        tl.store(losses_ptr + n, loss)
        tl.store(logprobs_ptr + n, logprob)
        tl.store(entropy_ptr + n, entropy)
        tl.store(kl_ptr + n, kl)
        tl.store(clipped_ptr + n, clipped)
        tl.store(row_max_ptr + n, row_max)
        tl.store(log_sum_ptr + n, log_sum)
        tl.store(grad_logprobs_ptr + n, grad_logprob)
        tl.store(grad_entropy_ptr + n, grad_entropy)
        if grad_ptr is not None:
            grad_row_ptr = grad_ptr + row_offset(n, T, stride_grad_b, stride_grad_t, VEC)
            if readable:
                write_row_gradient(
                    row_ptr, grad_row_ptr, target, inverse_temperature, row_max, log_sum, entropy,
                    grad_logprob, grad_entropy, V, DEPTH, LANES, VEC,
                )  # fmt: skip
            else:
                fill_row(grad_row_ptr, value, V, DEPTH, LANES, VEC)


@_jit
def scale_rows_kernel(
    logits_ptr, scale_ptr, T, stride_logits_b: tl.int64, stride_logits_t: tl.int64,
    V: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0)
    scale = tl.load(scale_ptr + n)
    if scale != 1:
        scale_row(logits_ptr + row_offset(n, T, stride_logits_b, stride_logits_t, VEC), scale, V, DEPTH, LANES, VEC)


def _tiling(matrices: tuple[Tensor, ...], threads_of: dict) -> Tiling:
    x = matrices[0]
    warp_size = machine_of(x.device).warp_size
    return tiling(x.shape[-1], x.element_size(), row_vector(*matrices), threads_of, warp_size)


def _strides(x: Tensor, vector: int) -> tuple[int, int]:
    return x.stride(0) // vector, x.stride(1) // vector


def _temperature_stride(inverse_temperature: Tensor) -> int:
    return int(inverse_temperature.shape[0] > 1)


def _row_vectors(logits: Tensor, count: int) -> list[Tensor]:
    rows, dtype = logits.shape[0] * logits.shape[1], statistics_dtype(logits.dtype)
    return [torch.empty(rows, dtype=dtype, device=logits.device) for _ in range(count)]


def logprobs_entropy(
    logits: Tensor, targets: Tensor, inverse_temperature: Tensor, mask: Tensor | None
) -> RowStatistics:
    """One read of the logits."""
    statistics = RowStatistics(*_row_vectors(logits, 4))
    rows = targets.shape[0]
    if rows > 0:
        tiles = _tiling((logits,), STATISTICS_THREADS)
        with on_device(logits.device):
            logprobs_entropy_kernel[(rows,)](
                logits, targets, inverse_temperature, mask, *statistics,
                logits.shape[1], *_strides(logits, tiles.VEC), _temperature_stride(inverse_temperature),
                **tiles.options(),
            )  # fmt: skip
    return statistics


def logprobs_entropy_gradient(
    logits: Tensor,
    targets: Tensor,
    inverse_temperature: Tensor,
    mask: Tensor | None,
    row_max: Tensor,
    log_sum: Tensor,
    entropy: Tensor,
    grad_logprobs: Tensor,
    grad_entropy: Tensor,
    grad_logits: Tensor,
) -> None:
    """One read and one write of the logits; `grad_logits` may be `logits`."""
    rows = targets.shape[0]
    if rows == 0:
        return
    tiles = _tiling((logits, grad_logits), STREAMING_THREADS)
    with on_device(logits.device):
        logprobs_entropy_gradient_kernel[(rows,)](
            logits, targets, inverse_temperature, mask,
            row_max, log_sum, entropy, grad_logprobs, grad_entropy, grad_logits,
            logits.shape[1], *_strides(logits, tiles.VEC), *_strides(grad_logits, tiles.VEC),
            _temperature_stride(inverse_temperature), **tiles.options(),
        )  # fmt: skip


def dual_mode_loss(
    logits: Tensor,
    targets: Tensor,
    inverse_temperature: Tensor,
    mask: Tensor | None,
    advantages: Tensor,
    old_logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    weights: Tensor,
    entropy_coef: Tensor,
    kl_coef: Tensor,
    clip_low: float,
    clip_high: float,
    clip_delta: float | None,
    grad_logits: Tensor | None,
) -> LossRows:
    """One read from memory, one from the cache, one write; without `grad_logits` one read."""
    losses, logprobs, entropy, kl, row_max, log_sum, grad_logprobs, grad_entropy = _row_vectors(logits, 8)
    clipped = torch.empty_like(losses, dtype=torch.bool)
    result = LossRows(losses, logprobs, entropy, kl, clipped, row_max, log_sum, grad_logprobs, grad_entropy)
    rows = targets.shape[0]
    if rows == 0:
        return result
    matrices = (logits,) if grad_logits is None else (logits, grad_logits)
    tiles = _tiling(matrices, STATISTICS_THREADS)
    programs = rows if grad_logits is None else resident_programs(rows, logits, tiles)
    with on_device(logits.device):
        dual_mode_loss_kernel[(programs,)](
            logits, targets, inverse_temperature, mask,
            advantages, old_logprobs, ref_logprobs, weights, entropy_coef, kl_coef,
            clip_low, clip_high, math.inf if clip_delta is None else clip_delta, grad_logits,
            *result, rows, logits.shape[1], *_strides(logits, tiles.VEC), *_strides(matrices[-1], tiles.VEC),
            _temperature_stride(inverse_temperature), **tiles.options(), **resident_options(logits.device),
        )  # fmt: skip
    return result


def scale_rows_(x: Tensor, scale: Tensor) -> None:
    """One read and one write of the rows whose number is not 1; nothing of the others."""
    if scale.shape[0] > 0:
        tiles = _tiling((x,), STREAMING_THREADS)
        with on_device(x.device):
            scale_rows_kernel[(scale.shape[0],)](
                x, scale, x.shape[1], *_strides(x, tiles.VEC), **tiles.options()
            )  # fmt: skip
