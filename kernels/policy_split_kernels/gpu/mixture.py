"""GPU: what one program does with two rows and the mixture of their distributions (device functions; see `divergence`).

A token is looked at from the larger of its two probabilities: the quotient of the smaller is at most 1, and the log of
the mixture over the larger is the log of a number between the mixture's smaller share and 1. Exponents are in base 2.
"""

import triton
import triton.language as tl

from .rows import FLOOR, LEAST_FP32, LEAST_FP64, LN2, row_sums, settled, sum_in_lane
from .tiles import LOG2E, load_x, store_tile

NEAR = tl.constexpr(0.5)  # of a logarithm: below it the series of exp(x) - 1 ends at SERIES_TERMS
SERIES_TERMS = tl.constexpr(9)


@triton.jit
def _expm1(x, exp_x):
    """exp(x) - 1 for x <= 0, where exp(x) is known; in float32 the difference would cancel near 0."""
    if x.dtype == tl.float64:
        return exp_x - 1
    series = x * 0 + 1
    for k in tl.static_range(SERIES_TERMS, 1, -1):
        series = 1 + series * x * (1.0 / k)
    return tl.where(x > -NEAR, x * series, exp_x - 1)


@triton.jit
def _token_pair(a, b, pair):
    """p, q, log p - log m and log q - log m of a tile, all finite; m is the mixture, the logs are natural."""
    max_a, log_sum_a, max_b, log_sum_b, beta, rest, scale = pair
    LEAST: tl.constexpr = LEAST_FP64 if scale.dtype == tl.float64 else LEAST_FP32
    SMALLEST: tl.constexpr = 2.0**-1000 if scale.dtype == tl.float64 else 2.0**-120
    d_a = tl.maximum(a - max_a, LEAST)
    d_b = tl.maximum(b - max_b, LEAST)
    gap = tl.fma(d_a - d_b, scale, log_sum_b - log_sum_a)  # formed before log p and log q round
    of_a = gap >= 0
    larger = tl.exp2(tl.maximum(tl.where(of_a, tl.fma(d_a, scale, -log_sum_a), tl.fma(d_b, scale, -log_sum_b)), FLOOR))
    size = tl.minimum(tl.abs(gap), -FLOOR)
    quotient = tl.exp2(-size)
    share = tl.where(of_a, beta, rest)  # of the smaller one
    mixed = tl.maximum(tl.fma(share, quotient, tl.where(of_a, rest, beta)), SMALLEST)
    change = share * _expm1(-size * LN2, quotient)
    rounded_off = tl.where(mixed > 0.5, change - (mixed - 1), 0.0)
    of_larger = -(tl.log(mixed) + rounded_off)
    of_smaller = of_larger - size * LN2
    smaller = larger * quotient
    return (
        tl.where(of_a, larger, smaller),
        tl.where(of_a, smaller, larger),
        tl.where(of_a, of_larger, of_smaller),
        tl.where(of_a, of_smaller, of_larger),
    )


@triton.jit
def _accumulate(
    a_ptr, b_ptr, i, pair, kl_a, kl_b,
    V: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = kl_a.dtype
    a = load_x(a_ptr, (None, None), i, dtype, V, DEPTH, LANES, VEC, TAIL)
    b = load_x(b_ptr, (None, None), i, dtype, V, DEPTH, LANES, VEC, TAIL)
    p, q, gap_p, gap_q = _token_pair(a, b, pair)
    return kl_a + sum_in_lane(p * gap_p, LANES, VEC), kl_b + sum_in_lane(q * gap_q, LANES, VEC)


@triton.jit
def mixture_statistics(
    a_ptr, b_ptr, inverse_temperature, beta, rest,
    V: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """The fields of `contract.MixtureRows` of one pair of rows; `rest` is 1 - beta."""
    dtype: tl.constexpr = inverse_temperature.dtype
    TILES: tl.constexpr = V // (DEPTH * LANES * VEC)
    scale = inverse_temperature * LOG2E
    max_a, sum_a, _ = row_sums(a_ptr, (None, None), scale, V, DEPTH, LANES, VEC)
    max_b, sum_b, _ = row_sums(b_ptr, (None, None), scale, V, DEPTH, LANES, VEC)
    max_a, log_sum_a = settled(max_a, sum_a)
    max_b, log_sum_b = settled(max_b, sum_b)
    pair = (max_a, log_sum_a * LOG2E, max_b, log_sum_b * LOG2E, beta, rest, scale)
    lanes_a = tl.zeros((LANES,), dtype)
    lanes_b = lanes_a
    # From the end of the rows: what was read last is what the L2 cache still holds.
    if V % (DEPTH * LANES * VEC) != 0:
        lanes_a, lanes_b = _accumulate(a_ptr, b_ptr, TILES, pair, lanes_a, lanes_b, V, DEPTH, LANES, VEC, True)
    for i in range(TILES):
        lanes_a, lanes_b = _accumulate(a_ptr, b_ptr, TILES - 1 - i, pair, lanes_a, lanes_b, V, DEPTH, LANES, VEC, False)
    unknown = (log_sum_a - log_sum_a) + (log_sum_b - log_sum_b)  # NaN if either row has NaN, else 0
    kl_a = tl.sum(lanes_a, 0) + unknown
    kl_b = tl.sum(lanes_b, 0) + unknown
    return rest * kl_a + beta * kl_b, kl_a, kl_b, max_a, log_sum_a, max_b, log_sum_b


@triton.jit
def _write_tile(
    a_ptr, b_ptr, grad_a_ptr, grad_b_ptr, i, pair, kl_a, kl_b, unit_a, unit_b,
    V: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = kl_a.dtype
    a = load_x(a_ptr, (None, None), i, dtype, V, DEPTH, LANES, VEC, TAIL)
    b = load_x(b_ptr, (None, None), i, dtype, V, DEPTH, LANES, VEC, TAIL)
    p, q, gap_p, gap_q = _token_pair(a, b, pair)
    if grad_a_ptr is not None:
        store_tile(grad_a_ptr, i, unit_a * (p * (gap_p - kl_a)), V, DEPTH, LANES, VEC, TAIL)
    if grad_b_ptr is not None:
        store_tile(grad_b_ptr, i, unit_b * (q * (gap_q - kl_b)), V, DEPTH, LANES, VEC, TAIL)


@triton.jit
def write_mixture_gradient(
    a_ptr, b_ptr, grad_a_ptr, grad_b_ptr, inverse_temperature, beta, rest,
    kl_a, kl_b, max_a, log_sum_a, max_b, log_sum_b, upstream,
    V: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """Gradients of one pair of rows; the KLs carry the NaN of either row. No hazard, as in `pairs`."""
    TILES: tl.constexpr = V // (DEPTH * LANES * VEC)
    scale = inverse_temperature * LOG2E
    pair = (max_a, log_sum_a * LOG2E, max_b, log_sum_b * LOG2E, beta, rest, scale)
    unit_a = upstream * inverse_temperature * rest
    unit_b = upstream * inverse_temperature * beta
    for i in range(TILES):
        _write_tile(
            a_ptr, b_ptr, grad_a_ptr, grad_b_ptr, i, pair, kl_a, kl_b, unit_a, unit_b, V, DEPTH, LANES, VEC, False
        )
    if V % (DEPTH * LANES * VEC) != 0:
        _write_tile(
            a_ptr, b_ptr, grad_a_ptr, grad_b_ptr, TILES, pair, kl_a, kl_b, unit_a, unit_b, V, DEPTH, LANES, VEC, True
        )
