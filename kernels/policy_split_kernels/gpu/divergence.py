"""GPU: divergence of two matrices of logits. Signatures and meaning are those of `reference.divergence`."""

import triton.language as tl
from torch import Tensor

from ..contract import DivergenceRows, MixtureRows, statistics_dtype
from .launch import (
    MIXTURE_THREAD_BYTES,
    PAIR_THREAD_BYTES,
    PAIR_THREADS,
    STREAMING_THREADS,
    jit,
    on_device,
    resident_options,
    row_vectors,
    strides,
    temperature_stride,
    tiling_of,
)
from .mixture import mixture_statistics, write_mixture_gradient
from .pairs import pair_statistics, write_pair_gradient
from .tiles import fill_row, row_offset


@jit
def divergence_kernel(
    logits_a_ptr, logits_b_ptr, inverse_temperature_ptr, mask_ptr,
    kl_ab_ptr, kl_ba_ptr, entropy_a_ptr, entropy_b_ptr, max_a_ptr, log_sum_a_ptr, max_b_ptr, log_sum_b_ptr,
    T, stride_a_b: tl.int64, stride_a_t: tl.int64, stride_b_b: tl.int64, stride_b_t: tl.int64, stride_temperature,
    V: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0)
    inverse_temperature = tl.load(inverse_temperature_ptr + n * stride_temperature)
    zero = tl.full((), 0.0, inverse_temperature.dtype)
    kl_ab, kl_ba, entropy_a, entropy_b, max_a, log_sum_a, max_b, log_sum_b = (
        zero, zero, zero, zero, zero, zero, zero, zero,
    )  # fmt: skip
    valid = True
    if mask_ptr is not None:
        valid = tl.load(mask_ptr + n) != 0
    if valid:
        kl_ab, kl_ba, entropy_a, entropy_b, max_a, log_sum_a, max_b, log_sum_b = pair_statistics(
            logits_a_ptr + row_offset(n, T, stride_a_b, stride_a_t, VEC),
            logits_b_ptr + row_offset(n, T, stride_b_b, stride_b_t, VEC),
            inverse_temperature, V, DEPTH, LANES, VEC,
        )  # fmt: skip
    tl.store(kl_ab_ptr + n, kl_ab)
    tl.store(kl_ba_ptr + n, kl_ba)
    tl.store(entropy_a_ptr + n, entropy_a)
    tl.store(entropy_b_ptr + n, entropy_b)
    tl.store(max_a_ptr + n, max_a)
    tl.store(log_sum_a_ptr + n, log_sum_a)
    tl.store(max_b_ptr + n, max_b)
    tl.store(log_sum_b_ptr + n, log_sum_b)


@jit
def divergence_gradient_kernel(
    logits_a_ptr, logits_b_ptr, inverse_temperature_ptr, mask_ptr,
    kl_ab_ptr, kl_ba_ptr, entropy_a_ptr, entropy_b_ptr, max_a_ptr, log_sum_a_ptr, max_b_ptr, log_sum_b_ptr,
    grad_kl_ab_ptr, grad_kl_ba_ptr, grad_entropy_a_ptr, grad_entropy_b_ptr, grad_a_ptr, grad_b_ptr,
    T, stride_a_b: tl.int64, stride_a_t: tl.int64, stride_b_b: tl.int64, stride_b_t: tl.int64,
    stride_grad_a_b: tl.int64, stride_grad_a_t: tl.int64, stride_grad_b_b: tl.int64, stride_grad_b_t: tl.int64,
    stride_temperature,
    V: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0)
    row_a_ptr = None if grad_a_ptr is None else grad_a_ptr + row_offset(n, T, stride_grad_a_b, stride_grad_a_t, VEC)
    row_b_ptr = None if grad_b_ptr is None else grad_b_ptr + row_offset(n, T, stride_grad_b_b, stride_grad_b_t, VEC)
    valid = True
    if mask_ptr is not None:
        valid = tl.load(mask_ptr + n) != 0
    if valid:
        write_pair_gradient(
            logits_a_ptr + row_offset(n, T, stride_a_b, stride_a_t, VEC),
            logits_b_ptr + row_offset(n, T, stride_b_b, stride_b_t, VEC),
            row_a_ptr, row_b_ptr, tl.load(inverse_temperature_ptr + n * stride_temperature),
            tl.load(kl_ab_ptr + n), tl.load(kl_ba_ptr + n), tl.load(entropy_a_ptr + n), tl.load(entropy_b_ptr + n),
            tl.load(max_a_ptr + n), tl.load(log_sum_a_ptr + n), tl.load(max_b_ptr + n), tl.load(log_sum_b_ptr + n),
            tl.load(grad_kl_ab_ptr + n), tl.load(grad_kl_ba_ptr + n),
            tl.load(grad_entropy_a_ptr + n), tl.load(grad_entropy_b_ptr + n), V, DEPTH, LANES, VEC,
        )  # fmt: skip
    else:
        if grad_a_ptr is not None:
            fill_row(row_a_ptr, 0.0, V, DEPTH, LANES, VEC)
        if grad_b_ptr is not None:
            fill_row(row_b_ptr, 0.0, V, DEPTH, LANES, VEC)


@jit
def jensen_shannon_kernel(
    logits_a_ptr, logits_b_ptr, inverse_temperature_ptr, mask_ptr, beta: tl.float64,
    divergence_ptr, kl_a_ptr, kl_b_ptr, max_a_ptr, log_sum_a_ptr, max_b_ptr, log_sum_b_ptr,
    T, stride_a_b: tl.int64, stride_a_t: tl.int64, stride_b_b: tl.int64, stride_b_t: tl.int64, stride_temperature,
    V: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0)
    inverse_temperature = tl.load(inverse_temperature_ptr + n * stride_temperature)
    zero = tl.full((), 0.0, inverse_temperature.dtype)
    divergence, kl_a, kl_b, max_a, log_sum_a, max_b, log_sum_b = zero, zero, zero, zero, zero, zero, zero
    valid = True
    if mask_ptr is not None:
        valid = tl.load(mask_ptr + n) != 0
    if valid:
        divergence, kl_a, kl_b, max_a, log_sum_a, max_b, log_sum_b = mixture_statistics(
            logits_a_ptr + row_offset(n, T, stride_a_b, stride_a_t, VEC),
            logits_b_ptr + row_offset(n, T, stride_b_b, stride_b_t, VEC),
            inverse_temperature, tl.full((), beta, zero.dtype), tl.full((), 1.0 - beta, zero.dtype),
            V, DEPTH, LANES, VEC,
        )  # fmt: skip
    tl.store(divergence_ptr + n, divergence)
    tl.store(kl_a_ptr + n, kl_a)
    tl.store(kl_b_ptr + n, kl_b)
    tl.store(max_a_ptr + n, max_a)
    tl.store(log_sum_a_ptr + n, log_sum_a)
    tl.store(max_b_ptr + n, max_b)
    tl.store(log_sum_b_ptr + n, log_sum_b)


@jit
def jensen_shannon_gradient_kernel(
    logits_a_ptr, logits_b_ptr, inverse_temperature_ptr, mask_ptr, beta: tl.float64,
    kl_a_ptr, kl_b_ptr, max_a_ptr, log_sum_a_ptr, max_b_ptr, log_sum_b_ptr, upstream_ptr, grad_a_ptr, grad_b_ptr,
    T, stride_a_b: tl.int64, stride_a_t: tl.int64, stride_b_b: tl.int64, stride_b_t: tl.int64,
    stride_grad_a_b: tl.int64, stride_grad_a_t: tl.int64, stride_grad_b_b: tl.int64, stride_grad_b_t: tl.int64,
    stride_temperature,
    V: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0)
    row_a_ptr = None if grad_a_ptr is None else grad_a_ptr + row_offset(n, T, stride_grad_a_b, stride_grad_a_t, VEC)
    row_b_ptr = None if grad_b_ptr is None else grad_b_ptr + row_offset(n, T, stride_grad_b_b, stride_grad_b_t, VEC)
    upstream = tl.load(upstream_ptr + n)
    wanted = upstream != 0
    if mask_ptr is not None:
        wanted = wanted & (tl.load(mask_ptr + n) != 0)
    if wanted:
        write_mixture_gradient(
            logits_a_ptr + row_offset(n, T, stride_a_b, stride_a_t, VEC),
            logits_b_ptr + row_offset(n, T, stride_b_b, stride_b_t, VEC),
            row_a_ptr, row_b_ptr, tl.load(inverse_temperature_ptr + n * stride_temperature),
            tl.full((), beta, upstream.dtype), tl.full((), 1.0 - beta, upstream.dtype),
            tl.load(kl_a_ptr + n), tl.load(kl_b_ptr + n),
            tl.load(max_a_ptr + n), tl.load(log_sum_a_ptr + n), tl.load(max_b_ptr + n), tl.load(log_sum_b_ptr + n),
            upstream, V, DEPTH, LANES, VEC,
        )  # fmt: skip
    else:
        if grad_a_ptr is not None:
            fill_row(row_a_ptr, 0.0, V, DEPTH, LANES, VEC)
        if grad_b_ptr is not None:
            fill_row(row_b_ptr, 0.0, V, DEPTH, LANES, VEC)


def divergence(logits_a: Tensor, logits_b: Tensor, inverse_temperature: Tensor, mask: Tensor | None) -> DivergenceRows:
    """One read of either matrix."""
    result = DivergenceRows(*row_vectors(logits_a, statistics_dtype(logits_a.dtype), 8))
    rows = result.kl_ab.shape[0]
    if rows > 0:
        tiles = tiling_of((logits_a, logits_b), PAIR_THREADS)
        with on_device(logits_a.device):
            divergence_kernel[(rows,)](
                logits_a, logits_b, inverse_temperature, mask, *result,
                logits_a.shape[1], *strides(logits_a, tiles.VEC), *strides(logits_b, tiles.VEC),
                temperature_stride(inverse_temperature), **tiles.options(),
            )  # fmt: skip
    return result


def divergence_gradient(
    logits_a: Tensor,
    logits_b: Tensor,
    inverse_temperature: Tensor,
    mask: Tensor | None,
    kl_ab: Tensor,
    kl_ba: Tensor,
    entropy_a: Tensor,
    entropy_b: Tensor,
    max_a: Tensor,
    log_sum_a: Tensor,
    max_b: Tensor,
    log_sum_b: Tensor,
    grad_kl_ab: Tensor,
    grad_kl_ba: Tensor,
    grad_entropy_a: Tensor,
    grad_entropy_b: Tensor,
    grad_a: Tensor | None,
    grad_b: Tensor | None,
) -> None:
    """One read of either matrix, one write of what is wanted."""
    rows = kl_ab.shape[0]
    if rows == 0 or (grad_a is None and grad_b is None):
        return
    matrices = (logits_a, logits_b, grad_a, grad_b)
    tiles = tiling_of(matrices, STREAMING_THREADS, PAIR_THREAD_BYTES)
    with on_device(logits_a.device):
        divergence_gradient_kernel[(rows,)](
            logits_a, logits_b, inverse_temperature, mask,
            kl_ab, kl_ba, entropy_a, entropy_b, max_a, log_sum_a, max_b, log_sum_b,
            grad_kl_ab, grad_kl_ba, grad_entropy_a, grad_entropy_b, grad_a, grad_b,
            logits_a.shape[1], *(stride for x in matrices for stride in strides(x, tiles.VEC)),
            temperature_stride(inverse_temperature), **tiles.options(), **resident_options(logits_a.device),
        )  # fmt: skip


def jensen_shannon(
    logits_a: Tensor, logits_b: Tensor, inverse_temperature: Tensor, mask: Tensor | None, beta: float
) -> MixtureRows:
    """One read of either matrix from memory, one from the cache."""
    result = MixtureRows(*row_vectors(logits_a, statistics_dtype(logits_a.dtype), 7))
    rows = result.divergence.shape[0]
    if rows > 0:
        tiles = tiling_of((logits_a, logits_b), PAIR_THREADS, PAIR_THREAD_BYTES)
        with on_device(logits_a.device):
            jensen_shannon_kernel[(rows,)](
                logits_a, logits_b, inverse_temperature, mask, beta, *result,
                logits_a.shape[1], *strides(logits_a, tiles.VEC), *strides(logits_b, tiles.VEC),
                temperature_stride(inverse_temperature), **tiles.options(),
            )  # fmt: skip
    return result


def jensen_shannon_gradient(
    logits_a: Tensor,
    logits_b: Tensor,
    inverse_temperature: Tensor,
    mask: Tensor | None,
    beta: float,
    kl_a: Tensor,
    kl_b: Tensor,
    max_a: Tensor,
    log_sum_a: Tensor,
    max_b: Tensor,
    log_sum_b: Tensor,
    grad_divergence: Tensor,
    grad_a: Tensor | None,
    grad_b: Tensor | None,
) -> None:
    """One read of either matrix, one write of what is wanted."""
    rows = kl_a.shape[0]
    if rows == 0 or (grad_a is None and grad_b is None):
        return
    matrices = (logits_a, logits_b, grad_a, grad_b)
    tiles = tiling_of(matrices, STREAMING_THREADS, MIXTURE_THREAD_BYTES)
    with on_device(logits_a.device):
        jensen_shannon_gradient_kernel[(rows,)](
            logits_a, logits_b, inverse_temperature, mask, beta,
            kl_a, kl_b, max_a, log_sum_a, max_b, log_sum_b, grad_divergence, grad_a, grad_b,
            logits_a.shape[1], *(stride for x in matrices for stride in strides(x, tiles.VEC)),
            temperature_stride(inverse_temperature), **tiles.options(), **resident_options(logits_a.device),
        )  # fmt: skip
