"""GPU: what one program does with one row of logits (device functions; the kernels are in `logits`).

Each lane keeps its own maximum and sums, and they meet once, at the end of the row, so that the loop has no barrier.
Exponents are in base 2: exp(x) = exp2(x * LOG2E), and exp2 is one instruction.
"""

import triton
import triton.language as tl

from .tiles import LOG2E, load_target_x, load_x, softcap_slope, store_tile

LN2 = tl.constexpr(0.6931471805599453)
# Exponents are bounded by this before they are multiplied: exp2 is 0 there already, and 0 * -1e4 is 0 where 0 * -inf is
# NaN. A NaN has to come from another factor, too: tl.maximum drops it, but not in the interpreter of every version.
FLOOR = tl.constexpr(-1e4)
# A lane's maximum starts at the least finite number, not at -inf: logits of -inf then are -inf away from it, not NaN,
# and every finite logit is a valid maximum. A row without a finite logit has the sum 0.
LEAST_FP32 = tl.constexpr(-3.4028234663852886e38)
LEAST_FP64 = tl.constexpr(-1.7976931348623157e308)
# Largest maximum, in base 2, whose rounding error exp2 can take. Neighbours of a larger one are 2^6 or more away.
LARGEST_FP32 = tl.constexpr(2.0**30)
LARGEST_FP64 = tl.constexpr(2.0**59)


@triton.jit
def max_in_lane(x, LANES: tl.constexpr, VEC: tl.constexpr):
    return tl.max(tl.max(x.reshape(x.shape[0], LANES, VEC), 2), 0)


@triton.jit
def sum_in_lane(x, LANES: tl.constexpr, VEC: tl.constexpr):
    return tl.sum(tl.sum(x.reshape(x.shape[0], LANES, VEC), 2), 0)


@triton.jit
def dot_in_lane(total, x, y, LANES: tl.constexpr, VEC: tl.constexpr):
    """total + sum of x * y of each lane, (LANES,): one fma for each element, where tl.sum(x * y) takes 1.5."""
    N: tl.constexpr = x.shape[0] * VEC
    x = x.reshape(x.shape[0], LANES, VEC).permute(1, 0, 2).reshape(LANES, N)
    y = y.reshape(y.shape[0], LANES, VEC).permute(1, 0, 2).reshape(LANES, N)
    return _chain(total, x, y, N)


@triton.jit
def _chain(total, x, y, N: tl.constexpr):
    if N == 1:
        return tl.fma(x.reshape(x.shape[0]), y.reshape(x.shape[0]), total)
    else:
        x_even, x_odd = tl.split(x.reshape(x.shape[0], N // 2, 2))
        y_even, y_odd = tl.split(y.reshape(x.shape[0], N // 2, 2))
        return _chain(_chain(total, x_even, y_even, N // 2), x_odd, y_odd, N // 2)


@triton.jit
def spread(lane_value, LANES: tl.constexpr, VEC: tl.constexpr):
    """(LANES,) -> (1, LANES * VEC)"""
    return lane_value[:, None].broadcast_to(LANES, VEC).reshape(1, LANES * VEC)


@triton.jit
def _accumulate(x, scale, lane_max, lane_sum, lane_moment, LANES: tl.constexpr, VEC: tl.constexpr):
    """Add a tile to the lanes' maximum m, sum of 2^d and sum of d * 2^d, where d = (x - m) * scale."""
    new_max = tl.maximum(lane_max, max_in_lane(x, LANES, VEC))
    shift = tl.maximum((lane_max - new_max) * scale, FLOOR)
    kept = tl.exp2(shift)
    # The maximum is subtracted before anything is multiplied: exact for neighbours of the maximum, whatever its size.
    d = (x - spread(new_max, LANES, VEC)) * scale
    e = tl.exp2(d)
    lane_moment = kept * (lane_moment + shift * lane_sum) + sum_in_lane(e * tl.maximum(d, FLOOR), LANES, VEC)
    lane_sum = kept * lane_sum + sum_in_lane(e, LANES, VEC)
    return new_max, lane_sum, lane_moment


@triton.jit
def row_sums(row_ptr, transform, scale, V: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr):
    """Maximum m of a row, sum of 2^d and sum of d * 2^d."""
    dtype: tl.constexpr = scale.dtype
    TILE: tl.constexpr = DEPTH * LANES * VEC
    lane_max = tl.full((LANES,), LEAST_FP64 if dtype == tl.float64 else LEAST_FP32, dtype)
    lane_sum = tl.zeros((LANES,), dtype)
    lane_moment = tl.zeros((LANES,), dtype)
    for i in range(V // TILE):
        x = load_x(row_ptr, transform, i, dtype, V, DEPTH, LANES, VEC, False)
        lane_max, lane_sum, lane_moment = _accumulate(x, scale, lane_max, lane_sum, lane_moment, LANES, VEC)
    if V % TILE != 0:
        tail_x = load_x(row_ptr, transform, V // TILE, dtype, V, DEPTH, LANES, VEC, True)
        lane_max, lane_sum, lane_moment = _accumulate(tail_x, scale, lane_max, lane_sum, lane_moment, LANES, VEC)
    row_max = tl.max(lane_max, 0)
    shift = tl.maximum((lane_max - row_max) * scale, FLOOR)
    kept = tl.exp2(shift)
    return row_max, tl.sum(kept * lane_sum, 0), tl.sum(kept * (lane_moment + shift * lane_sum), 0)


@triton.jit
def row_statistics(
    row_ptr, transform, target, inverse_temperature,
    V: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """logprob, entropy, row_max, log_sum of one row, as `reference.logprobs_entropy` defines them."""
    target_x = load_target_x(row_ptr, transform, target, inverse_temperature.dtype)
    row_max, total, moment = row_sums(row_ptr, transform, inverse_temperature * LOG2E, V, DEPTH, LANES, VEC)
    row_max, log_sum = settled(row_max, total)
    logprob = tl.where(target >= 0, (target_x - row_max) * inverse_temperature - log_sum, 0.0)
    entropy = log_sum - moment / total * LN2
    return logprob, entropy, row_max, log_sum


@triton.jit
def settled(row_max, total):
    """Maximum and log of the sum, as the definitions have them where nothing is finite or something is NaN."""
    nothing_finite = total == 0
    row_max = tl.where(nothing_finite, -float("inf"), row_max)
    row_max = tl.where((total != total) & (row_max < float("inf")), float("nan"), row_max)
    return row_max, tl.where(nothing_finite, float("nan"), tl.log(total))


@triton.jit
def _write_tile_gradient(
    row_ptr, grad_ptr, transform, i, scale, base, level, slope,
    V: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """2^d * (level + slope * d) where d = x * scale + base, times dx / dz."""
    softcap, _ = transform
    x = load_x(row_ptr, transform, i, level.dtype, V, DEPTH, LANES, VEC, TAIL)
    d = tl.maximum(tl.fma(x, scale, base), FLOOR)
    grad = tl.exp2(d) * (level + slope * d)
    if softcap is not None:
        grad *= softcap_slope(x, softcap)
    store_tile(grad_ptr, i, grad, V, DEPTH, LANES, VEC, TAIL)


@triton.jit
def _target_gradient(
    target_x, inverse_temperature, row_max, log_sum, entropy, grad_logprob, grad_entropy, grad_lse, softcap,
):  # fmt: skip
    log_p = (target_x - row_max) * inverse_temperature - log_sum
    p = tl.exp2(log_p * LOG2E)
    grad = grad_logprob * (1 - p) - grad_entropy * p * (tl.maximum(log_p, FLOOR) + entropy) + grad_lse * p
    if softcap is not None:
        grad *= softcap_slope(target_x, softcap)
    return inverse_temperature * grad


@triton.jit
def write_row_gradient(
    row_ptr, grad_ptr, transform, target, inverse_temperature, row_max, log_sum, entropy, grad_logprob, grad_entropy,
    grad_lse, V: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """Gradient of one row, from its end to its start: what was read last is what the L2 cache still holds."""
    dtype: tl.constexpr = row_max.dtype
    TILE: tl.constexpr = DEPTH * LANES * VEC
    # (x - row_max) * scale is one fma, x * scale + base, and exact as long as the rounding of `base` is kept: with
    # 1 / sum it goes into the two numbers that 2^d is multiplied by. They carry the NaN of a row, too.
    largest = tl.full((), LARGEST_FP64 if dtype == tl.float64 else LARGEST_FP32, dtype)
    scale = tl.minimum(inverse_temperature * LOG2E, largest / tl.abs(row_max))
    base = -row_max * scale
    offset = log_sum * LOG2E + tl.fma(row_max, scale, base)
    kept = tl.exp2(-offset) * inverse_temperature
    slope = -kept * grad_entropy * LN2
    level = -kept * (grad_entropy * entropy + grad_logprob) + kept * grad_lse - slope * offset

    # Two hazards between warps, each with a barrier. `grad_ptr` may be `row_ptr`: the target's logit, which every warp
    # reads, is read before any warp overwrites it. And its gradient is written by one warp over what another has
    # written there in the loop. In the loop itself a thread overwrites what it alone has read (tests/compiled).
    target_x = load_target_x(row_ptr, transform, target, dtype)
    tl.debug_barrier()
    if V % TILE != 0:
        _write_tile_gradient(
            row_ptr, grad_ptr, transform, V // TILE, scale, base, level, slope, V, DEPTH, LANES, VEC, True
        )
    for i in range(V // TILE):
        _write_tile_gradient(
            row_ptr, grad_ptr, transform, V // TILE - 1 - i, scale, base, level, slope, V, DEPTH, LANES, VEC, False
        )
    tl.debug_barrier()
    at_target = _target_gradient(
        target_x, inverse_temperature, row_max, log_sum, entropy, grad_logprob, grad_entropy, grad_lse, transform[0]
    )
    if transform[1] is not None:
        at_target = tl.where(tl.load(transform[1] + tl.maximum(target, 0)) != 0, at_target, 0.0 * at_target)
    tl.store(grad_ptr + target, at_target.to(grad_ptr.dtype.element_ty), mask=target >= 0)
