"""GPU: statistics, gradients and the dual-mode loss from logits. Signatures and meaning are those of `reference`.

A target outside the vocabulary makes its row NaN: raising would synchronise with the host.
"""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..contract import ELSEWHERE, IGNORE_INDEX, LossRows, RowStatistics, statistics_dtype
from .launch import (
    STATISTICS_THREADS,
    STREAMING_THREADS,
    jit,
    on_device,
    resident_options,
    resident_programs,
    row_vectors,
    strides,
    temperature_stride,
    tiling_of,
)
from .loss import loss_of_statistics
from .rows import row_statistics, write_row_gradient
from .tiles import fill_row, row_offset, scale_row

_IGNORED = tl.constexpr(IGNORE_INDEX)
_ELSEWHERE = tl.constexpr(ELSEWHERE)
_BAD_TARGET = tl.constexpr(-1)


@triton.jit
def _row_target(n, targets_ptr, mask_ptr, V: tl.constexpr):
    """Target of row n and whether the row counts; ELSEWHERE becomes -2, any other that is no column _BAD_TARGET."""
    target = tl.load(targets_ptr + n)
    valid = target != _IGNORED
    if mask_ptr is not None:
        valid = valid & (tl.load(mask_ptr + n) != 0)
    other = tl.where(target == _ELSEWHERE, -2, _BAD_TARGET)
    return tl.where((target >= 0) & (target < V), target, other).to(tl.int32), valid


@triton.jit
def _row_transform(n, T, softcap, CAPPED: tl.constexpr, keep_ptr, stride_b, stride_t, VEC: tl.constexpr):
    """The row's own `transform`, as `tiles` has it."""
    return (
        tl.full((), softcap, tl.float64) if CAPPED else None,
        None if keep_ptr is None else keep_ptr + row_offset(n, T, stride_b, stride_t, VEC),
    )


@jit
def logprobs_entropy_kernel(
    logits_ptr, targets_ptr, inverse_temperature_ptr, mask_ptr, softcap: tl.float64, keep_ptr,
    logprobs_ptr, entropy_ptr, row_max_ptr, log_sum_ptr,
    T, stride_logits_b: tl.int64, stride_logits_t: tl.int64, stride_keep_b: tl.int64, stride_keep_t: tl.int64,
    stride_temperature, CAPPED: tl.constexpr,
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
    if valid & (target != _BAD_TARGET):
        row_ptr = logits_ptr + row_offset(n, T, stride_logits_b, stride_logits_t, VEC)
        transform = _row_transform(n, T, softcap, CAPPED, keep_ptr, stride_keep_b, stride_keep_t, VEC)
        logprob, entropy, row_max, log_sum = row_statistics(
            row_ptr, transform, target, inverse_temperature, V, DEPTH, LANES, VEC
        )  # fmt: skip
    tl.store(logprobs_ptr + n, logprob)
    tl.store(entropy_ptr + n, entropy)
    tl.store(row_max_ptr + n, row_max)
    tl.store(log_sum_ptr + n, log_sum)


@jit
def logprobs_entropy_gradient_kernel(
    logits_ptr, targets_ptr, inverse_temperature_ptr, mask_ptr, softcap: tl.float64, keep_ptr,
    row_max_ptr, log_sum_ptr, entropy_ptr, grad_logprobs_ptr, grad_entropy_ptr, grad_lse_ptr, grad_ptr,
    T, stride_logits_b: tl.int64, stride_logits_t: tl.int64, stride_keep_b: tl.int64, stride_keep_t: tl.int64,
    stride_grad_b: tl.int64, stride_grad_t: tl.int64, stride_temperature, CAPPED: tl.constexpr,
    V: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0)
    target, valid = _row_target(n, targets_ptr, mask_ptr, V)
    grad_row_ptr = grad_ptr + row_offset(n, T, stride_grad_b, stride_grad_t, VEC)
    if valid & (target != _BAD_TARGET):
        grad_entropy = tl.load(grad_entropy_ptr + n)
        grad_lse = tl.full((), 0.0, grad_entropy.dtype)
        if grad_lse_ptr is not None:
            grad_lse = tl.load(grad_lse_ptr + n)
        write_row_gradient(
            logits_ptr + row_offset(n, T, stride_logits_b, stride_logits_t, VEC), grad_row_ptr,
            _row_transform(n, T, softcap, CAPPED, keep_ptr, stride_keep_b, stride_keep_t, VEC), target,
            tl.load(inverse_temperature_ptr + n * stride_temperature),
            tl.load(row_max_ptr + n), tl.load(log_sum_ptr + n), tl.load(entropy_ptr + n),
            tl.load(grad_logprobs_ptr + n), grad_entropy, grad_lse, V, DEPTH, LANES, VEC,
        )  # fmt: skip
    else:
        fill_row(grad_row_ptr, tl.where(valid, float("nan"), 0.0), V, DEPTH, LANES, VEC)


@jit
def dual_mode_loss_kernel(
    logits_ptr, targets_ptr, inverse_temperature_ptr, mask_ptr, softcap: tl.float64, keep_ptr,
    advantages_ptr, old_logprobs_ptr, ref_logprobs_ptr, sampler_logprobs_ptr, weights_ptr,
    entropy_coef_ptr, kl_coef_ptr,
    clip_low: tl.float64, clip_high: tl.float64, clip_delta: tl.float64, sampler_cap: tl.float64,
    sapo_positive: tl.float64, sapo_negative: tl.float64, kl_cap: tl.float64, grad_ptr,
    losses_ptr, logprobs_ptr, entropy_ptr, kl_ptr, clipped_ptr, row_max_ptr, log_sum_ptr,
    grad_logprobs_ptr, grad_entropy_ptr,
    N, T, stride_logits_b: tl.int64, stride_logits_t: tl.int64, stride_keep_b: tl.int64, stride_keep_t: tl.int64,
    stride_grad_b: tl.int64, stride_grad_t: tl.int64, stride_temperature, CAPPED: tl.constexpr,
    SURROGATE: tl.constexpr, KL_WEIGHTED: tl.constexpr,
    V: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0)
    while n < N:  # Triton 3.6.0's interpreter cannot make a range of tensors with today's NumPy
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
        readable = valid & (target != _BAD_TARGET)
        row_ptr = logits_ptr + row_offset(n, T, stride_logits_b, stride_logits_t, VEC)
        transform = _row_transform(n, T, softcap, CAPPED, keep_ptr, stride_keep_b, stride_keep_t, VEC)
        if readable:
            logprob, entropy, row_max, log_sum = row_statistics(
                row_ptr, transform, target, inverse_temperature, V, DEPTH, LANES, VEC
            )  # fmt: skip
            loss, kl, clipped, grad_logprob, grad_entropy = loss_of_statistics(
                n, logprob, entropy, advantages_ptr, old_logprobs_ptr, ref_logprobs_ptr, sampler_logprobs_ptr,
                weights_ptr, entropy_coef_ptr, kl_coef_ptr, clip_low, clip_high, clip_delta, sampler_cap,
                sapo_positive, sapo_negative, kl_cap, SURROGATE, KL_WEIGHTED,
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
        # In place, a row is overwritten that every warp has read for its statistics: `write_row_gradient` has a barrier
        # before that. The numbers stored above are not read again, nor is the row of another program.
        if grad_ptr is not None:
            grad_row_ptr = grad_ptr + row_offset(n, T, stride_grad_b, stride_grad_t, VEC)
            if readable:
                write_row_gradient(
                    row_ptr, grad_row_ptr, transform, target, inverse_temperature, row_max, log_sum, entropy,
                    grad_logprob, grad_entropy, tl.full((), 0.0, row_max.dtype), V, DEPTH, LANES, VEC,
                )  # fmt: skip
            else:
                fill_row(grad_row_ptr, value, V, DEPTH, LANES, VEC)
        n += tl.num_programs(0)


@jit
def scale_rows_kernel(
    logits_ptr, scale_ptr, T, stride_logits_b: tl.int64, stride_logits_t: tl.int64,
    V: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0)
    scale = tl.load(scale_ptr + n)
    if scale != 1:
        scale_row(logits_ptr + row_offset(n, T, stride_logits_b, stride_logits_t, VEC), scale, V, DEPTH, LANES, VEC)


def _bytes(keep_mask: Tensor | None) -> Tensor | None:
    return None if keep_mask is None else keep_mask.view(torch.uint8)


def logprobs_entropy(
    logits: Tensor,
    targets: Tensor,
    inverse_temperature: Tensor,
    mask: Tensor | None,
    softcap: float | None,
    keep_mask: Tensor | None,
) -> RowStatistics:
    """One read of the logits."""
    statistics = RowStatistics(*row_vectors(logits, statistics_dtype(logits.dtype), 4))
    rows = targets.shape[0]
    if rows > 0:
        keep = _bytes(keep_mask)
        tiles = tiling_of((logits, keep), STATISTICS_THREADS)
        with on_device(logits.device):
            logprobs_entropy_kernel[(rows,)](
                logits, targets, inverse_temperature, mask, softcap or 0.0, keep, *statistics,
                logits.shape[1], *strides(logits, tiles.VEC), *strides(keep, tiles.VEC),
                temperature_stride(inverse_temperature), softcap is not None, **tiles.options(),
            )  # fmt: skip
    return statistics


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
    grad_lse: Tensor | None,
    grad_logits: Tensor,
) -> None:
    """One read and one write of the logits; `grad_logits` may be `logits`."""
    rows = targets.shape[0]
    if rows == 0:
        return
    keep = _bytes(keep_mask)
    tiles = tiling_of((logits, grad_logits, keep), STREAMING_THREADS)
    with on_device(logits.device):
        logprobs_entropy_gradient_kernel[(rows,)](
            logits, targets, inverse_temperature, mask, softcap or 0.0, keep,
            row_max, log_sum, entropy, grad_logprobs, grad_entropy, grad_lse, grad_logits,
            logits.shape[1], *strides(logits, tiles.VEC), *strides(keep, tiles.VEC), *strides(grad_logits, tiles.VEC),
            temperature_stride(inverse_temperature), softcap is not None, **tiles.options(),
        )  # fmt: skip


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
    sapo_temperature: Sequence[float],
    use_bias_correction_kl: bool,
    kl_cap: float | None,
    grad_logits: Tensor | None,
) -> LossRows:
    """One read from memory, one from the cache, one write; without `grad_logits` one read."""
    losses, logprobs, entropy, kl, *others = row_vectors(logits, statistics_dtype(logits.dtype), 8)
    clipped = torch.empty_like(losses, dtype=torch.bool)
    result = LossRows(losses, logprobs, entropy, kl, clipped, *others)
    rows = targets.shape[0]
    if rows == 0:
        return result
    keep = _bytes(keep_mask)
    tiles = tiling_of((logits, grad_logits, keep), STATISTICS_THREADS)
    programs = rows if grad_logits is None else resident_programs(rows, logits, tiles)
    with on_device(logits.device):
        dual_mode_loss_kernel[(programs,)](
            logits, targets, inverse_temperature, mask, softcap or 0.0, keep,
            advantages, old_logprobs, ref_logprobs, sampler_logprobs, weights, entropy_coef, kl_coef,
            clip_low, clip_high, math.inf if clip_delta is None else clip_delta, sampler_cap, *sapo_temperature,
            math.inf if kl_cap is None else kl_cap, grad_logits, *result,
            rows, logits.shape[1], *strides(logits, tiles.VEC), *strides(keep, tiles.VEC),
            *strides(grad_logits, tiles.VEC), temperature_stride(inverse_temperature), softcap is not None,
            surrogate, use_bias_correction_kl, **tiles.options(), **resident_options(logits.device),
        )  # fmt: skip
    return result


def scale_rows_(x: Tensor, scale: Tensor) -> None:
    """One read and one write of the rows whose number is not 1; nothing of the others."""
    if scale.shape[0] > 0:
        tiles = tiling_of((x,), STREAMING_THREADS)
        with on_device(x.device):
            scale_rows_kernel[(scale.shape[0],)](x, scale, x.shape[1], *strides(x, tiles.VEC), **tiles.options())
