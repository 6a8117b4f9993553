"""GPU: what one program does with two rows of logits over one vocabulary (device functions; see `divergence`).

x is a logit, m its row's maximum so far, d = x - m; e = 2^(d * scale - HEADROOM). The gap d_a - d_b is formed before it
is averaged: two averages would cancel where the distributions are close. A gap of +inf, a token that only b cannot
draw, makes the sum over a infinite, or NaN where e is 0; where both d are -inf the gap is NaN, and becomes its bound.
"""

import triton
import triton.language as tl

from .rows import LEAST_FP32, LEAST_FP64, dot_in_lane, max_in_lane, settled, spread, sum_in_lane
from .tiles import LOG2E, load_x, store_tile

# Sums of e times a difference of finite logits stay finite: no finite gap may look like an infinite one.
HEADROOM = tl.constexpr(20.0)
ONE = tl.constexpr(2.0**20)  # 2^HEADROOM: what a sum of e is to be multiplied by
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def at_least(x, bound):
    """The larger one, and the bound for NaN: compiled, tl.maximum is that, but Triton 3.6.0's interpreter keeps a NaN.

    Compiled, the comparison would cost a float16 divergence 15.0 instructions per logit in place of 11.1 (sm_90).
    """
    if INTERPRETED:
        return tl.where(x > bound, x, bound)
    return tl.maximum(x, bound)


@triton.jit
def at_most(x, bound):
    """The smaller one, and the bound for NaN."""
    if INTERPRETED:
        return tl.where(x < bound, x, bound)
    return tl.minimum(x, bound)


@triton.jit
def _accumulate_pair(
    a, b, scale, max_a, max_b, sum_a, sum_b, moment_a, moment_b, gap_ab, gap_ba, LANES: tl.constexpr, VEC: tl.constexpr,
    LEAST: tl.constexpr,
):  # fmt: skip
    """Add a tile to the lanes' maxima, sums of e, of e * d, and of e * (own d - other d)."""
    new_a = tl.maximum(max_a, max_in_lane(a, LANES, VEC))
    new_b = tl.maximum(max_b, max_in_lane(b, LANES, VEC))
    sum_a, sum_b, moment_a, moment_b, gap_ab, gap_ba = _shifted(
        tl.maximum(max_a - new_a, LEAST), tl.maximum(max_b - new_b, LEAST), scale,
        sum_a, sum_b, moment_a, moment_b, gap_ab, gap_ba,
    )  # fmt: skip
    d_a = a - spread(new_a, LANES, VEC)
    d_b = b - spread(new_b, LANES, VEC)
    e_a = tl.exp2(tl.fma(d_a, scale, -HEADROOM))
    e_b = tl.exp2(tl.fma(d_b, scale, -HEADROOM))
    gap = d_a - d_b
    sum_a += sum_in_lane(e_a, LANES, VEC)
    sum_b += sum_in_lane(e_b, LANES, VEC)
    moment_a = dot_in_lane(moment_a, e_a, tl.maximum(d_a, LEAST), LANES, VEC)
    moment_b = dot_in_lane(moment_b, e_b, tl.maximum(d_b, LEAST), LANES, VEC)
    gap_ab = dot_in_lane(gap_ab, e_a, at_least(gap, LEAST), LANES, VEC)
    gap_ba = dot_in_lane(gap_ba, -e_b, at_most(gap, -LEAST), LANES, VEC)
    return new_a, new_b, sum_a, sum_b, moment_a, moment_b, gap_ab, gap_ba


@triton.jit
def _shifted(shift_a, shift_b, scale, sum_a, sum_b, moment_a, moment_b, gap_ab, gap_ba):
    """The sums after their maxima have moved by -shift."""
    kept_a = tl.exp2(shift_a * scale)
    kept_b = tl.exp2(shift_b * scale)
    gap = shift_a - shift_b
    return (
        kept_a * sum_a,
        kept_b * sum_b,
        kept_a * (moment_a + shift_a * sum_a),
        kept_b * (moment_b + shift_b * sum_b),
        kept_a * (gap_ab + gap * sum_a),
        kept_b * (gap_ba - gap * sum_b),
    )


@triton.jit
def pair_statistics(
    a_ptr, b_ptr, inverse_temperature, V: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr
):
    """The fields of `contract.DivergenceRows` of one pair of rows."""
    dtype: tl.constexpr = inverse_temperature.dtype
    LEAST: tl.constexpr = LEAST_FP64 if dtype == tl.float64 else LEAST_FP32
    TILES: tl.constexpr = V // (DEPTH * LANES * VEC)
    scale = inverse_temperature * LOG2E
    max_a = tl.full((LANES,), LEAST, dtype)
    max_b = max_a
    sum_a = tl.zeros((LANES,), dtype)
    sum_b = sum_a
    moment_a = sum_a
    moment_b = sum_a
    gap_ab = sum_a
    gap_ba = sum_a
    for i in range(TILES):
        a = load_x(a_ptr, (None, None), i, dtype, V, DEPTH, LANES, VEC, False)
        b = load_x(b_ptr, (None, None), i, dtype, V, DEPTH, LANES, VEC, False)
        max_a, max_b, sum_a, sum_b, moment_a, moment_b, gap_ab, gap_ba = _accumulate_pair(
            a, b, scale, max_a, max_b, sum_a, sum_b, moment_a, moment_b, gap_ab, gap_ba, LANES, VEC, LEAST
        )
    if V % (DEPTH * LANES * VEC) != 0:
        tail_a = load_x(a_ptr, (None, None), TILES, dtype, V, DEPTH, LANES, VEC, True)
        tail_b = load_x(b_ptr, (None, None), TILES, dtype, V, DEPTH, LANES, VEC, True)
        max_a, max_b, sum_a, sum_b, moment_a, moment_b, gap_ab, gap_ba = _accumulate_pair(
            tail_a, tail_b, scale, max_a, max_b, sum_a, sum_b, moment_a, moment_b, gap_ab, gap_ba, LANES, VEC, LEAST
        )
    row_a = tl.max(max_a, 0)
    row_b = tl.max(max_b, 0)
    sum_a, sum_b, moment_a, moment_b, gap_ab, gap_ba = _shifted(
        tl.maximum(max_a - row_a, LEAST), tl.maximum(max_b - row_b, LEAST), scale,
        sum_a, sum_b, moment_a, moment_b, gap_ab, gap_ba,
    )  # fmt: skip
    sum_a = tl.sum(sum_a, 0)
    sum_b = tl.sum(sum_b, 0)
    row_a, log_sum_a = settled(row_a, sum_a * ONE)
    row_b, log_sum_b = settled(row_b, sum_b * ONE)
    mean_ab = inverse_temperature * (tl.sum(gap_ab, 0) / sum_a)
    mean_ba = inverse_temperature * (tl.sum(gap_ba, 0) / sum_b)
    log_ratio = tl.log(sum_b / sum_a)
    unknown = log_sum_a + log_sum_b
    return (
        _kl(mean_ab + log_ratio, unknown),
        _kl(mean_ba - log_ratio, unknown),
        log_sum_a - inverse_temperature * (tl.sum(moment_a, 0) / sum_a),
        log_sum_b - inverse_temperature * (tl.sum(moment_b, 0) / sum_b),
        row_a,
        log_sum_a,
        row_b,
        log_sum_b,
    )


@triton.jit
def _kl(kl, unknown):
    """Between two rows that are known, NaN is the product of an infinite gap and of an e that is too small."""
    kl = tl.where(kl != kl, float("inf"), kl)
    return tl.where(unknown != unknown, float("nan"), kl)


@triton.jit
def _times(upstream, x):
    """An upstream gradient of 0 takes its term away whatever it would multiply."""
    return tl.where(upstream == 0, 0.0, upstream * x)


@triton.jit
def _side(inverse_temperature, kl, entropy, log_sum, other_log_sum, to_kl, to_other_kl, to_entropy):
    """Numbers of one side's gradient, e * (level + gap_slope * gap + slope * d) + to_other * q.

    p is p_of_e * e, where e = 2^(d * scale + lift): lifted, so that the bracket, which contains p_of_e, is finite where
    e is 0, even between numbers of the size of finfo.max.
    """
    size = inverse_temperature * (1 + inverse_temperature) * (tl.abs(to_kl) + tl.abs(to_entropy))
    lift = tl.ceil(tl.log2(1 + 4 * size))
    # The NaN of a row is in the bracket; p must not carry it into a term whose upstream gradient is 0.
    p_of_e = tl.where(log_sum == log_sum, tl.exp2(-lift) * tl.exp(-log_sum), 1.0)
    unknown = (log_sum - log_sum) + (other_log_sum - other_log_sum)  # NaN if either row has NaN, else 0
    to_other = -inverse_temperature * _times(to_other_kl, 1 + unknown)
    to_kl = inverse_temperature * to_kl * p_of_e
    to_entropy = -inverse_temperature * to_entropy * p_of_e
    kl = tl.where(kl == float("inf"), float("nan"), kl)
    constant = _times(to_entropy, entropy - log_sum) - _times(to_kl, kl + (log_sum - other_log_sum))
    bracket = (constant - to_other * p_of_e, inverse_temperature * to_kl, inverse_temperature * to_entropy)
    return bracket, to_other, p_of_e, lift


@triton.jit
def _write_side(
    grad_ptr, i, x, e, other_e, gap, d, bracket, to_other,
    V: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr, TAIL: tl.constexpr,
    INFINITE: tl.constexpr,
):  # fmt: skip
    level, gap_slope, slope = bracket
    grad = e * (level + gap_slope * gap + slope * d) + to_other * other_e
    if INFINITE:  # the bracket is NaN, and x = -inf is no part of it
        grad = tl.where(x == -float("inf"), to_other * other_e, grad)
    store_tile(grad_ptr, i, grad, V, DEPTH, LANES, VEC, TAIL)


@triton.jit
def _write_tile(
    a_ptr, b_ptr, grad_a_ptr, grad_b_ptr, i, scale, max_a, max_b, side_a, side_b,
    V: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr, TAIL: tl.constexpr,
    INFINITE: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = scale.dtype
    LEAST: tl.constexpr = LEAST_FP64 if dtype == tl.float64 else LEAST_FP32
    bracket_a, to_b, p_of_e_a, lift_a = side_a
    bracket_b, to_a, p_of_e_b, lift_b = side_b
    a = load_x(a_ptr, (None, None), i, dtype, V, DEPTH, LANES, VEC, TAIL)
    b = load_x(b_ptr, (None, None), i, dtype, V, DEPTH, LANES, VEC, TAIL)
    d_a = at_least(a - max_a, LEAST)  # finite in a row of NaN, too: the other's gradient may be known
    d_b = at_least(b - max_b, LEAST)
    e_a = tl.exp2(tl.fma(d_a, scale, lift_a))
    e_b = tl.exp2(tl.fma(d_b, scale, lift_b))
    gap = d_a - d_b
    if grad_a_ptr is not None:
        _write_side(
            grad_a_ptr, i, a, e_a, e_b, gap, d_a, bracket_a, to_b * p_of_e_b, V, DEPTH, LANES, VEC, TAIL, INFINITE
        )
    if grad_b_ptr is not None:
        _write_side(
            grad_b_ptr, i, b, e_b, e_a, -gap, d_b, bracket_b, to_a * p_of_e_a, V, DEPTH, LANES, VEC, TAIL, INFINITE
        )


@triton.jit
def _write_tiles(
    a_ptr, b_ptr, grad_a_ptr, grad_b_ptr, scale, max_a, max_b, side_a, side_b,
    V: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr, INFINITE: tl.constexpr,
):  # fmt: skip
    TILES: tl.constexpr = V // (DEPTH * LANES * VEC)
    for i in range(TILES):
        _write_tile(
            a_ptr, b_ptr, grad_a_ptr, grad_b_ptr, i, scale, max_a, max_b, side_a, side_b,
            V, DEPTH, LANES, VEC, False, INFINITE,
        )  # fmt: skip
    if V % (DEPTH * LANES * VEC) != 0:
        _write_tile(
            a_ptr, b_ptr, grad_a_ptr, grad_b_ptr, TILES, scale, max_a, max_b, side_a, side_b,
            V, DEPTH, LANES, VEC, True, INFINITE,
        )  # fmt: skip


@triton.jit
def write_pair_gradient(
    a_ptr, b_ptr, grad_a_ptr, grad_b_ptr, inverse_temperature,
    kl_ab, kl_ba, entropy_a, entropy_b, max_a, log_sum_a, max_b, log_sum_b,
    to_ab, to_ba, to_entropy_a, to_entropy_b,
    V: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """Gradients of one pair of rows. No hazard between warps: nothing that is written is read or written again."""
    side_a = _side(inverse_temperature, kl_ab, entropy_a, log_sum_a, log_sum_b, to_ab, to_ba, to_entropy_a)
    side_b = _side(inverse_temperature, kl_ba, entropy_b, log_sum_b, log_sum_a, to_ba, to_ab, to_entropy_b)
    scale = inverse_temperature * LOG2E
    # Two loops, because a comparison per element is dear and needed only where an infinite KL has a gradient.
    if ((kl_ab == float("inf")) & (to_ab != 0)) | ((kl_ba == float("inf")) & (to_ba != 0)):
        _write_tiles(
            a_ptr, b_ptr, grad_a_ptr, grad_b_ptr, scale, max_a, max_b, side_a, side_b, V, DEPTH, LANES, VEC, True
        )
    else:
        _write_tiles(
            a_ptr, b_ptr, grad_a_ptr, grad_b_ptr, scale, max_a, max_b, side_a, side_b, V, DEPTH, LANES, VEC, False
        )
