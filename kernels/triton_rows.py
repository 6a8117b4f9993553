"""GPU: what one program does with one row of logits (device functions; the kernels are in `triton_logits`).

A row is read in tiles of shape (DEPTH, LANES * VEC): a lane is a thread, and it holds DEPTH vectors of VEC neighbours,
so that a load is VEC elements (16 bytes where the row allows it). Seen as (DEPTH, LANES, VEC), reductions over the
first and the last axis stay inside the thread: each lane keeps its own maximum and sums, and they meet once, at the end
of the row, so that the loop has no barrier. (Loads of three axes are laid out differently by Triton 3.6 and 3.9.)
Exponents are in base 2: exp(x) = exp2(x * LOG2E), and exp2 is one instruction.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
# Exponents are bounded by this before they are multiplied: exp2 is 0 there already, and 0 * -1e4 is 0 where 0 * -inf is
# NaN. The bound drops NaN, but the factor beside it is exp2 of the unbounded exponent, so a NaN is kept.
FLOOR = tl.constexpr(-1e4)
# A lane's maximum starts at the least finite number, not at -inf: logits of -inf then are -inf away from it, not NaN,
# and every finite logit is a valid maximum. A row without a finite logit has the sum 0.
LEAST_FP32 = tl.constexpr(-3.4028234663852886e38)
LEAST_FP64 = tl.constexpr(-1.7976931348623157e308)


@triton.jit
def row_offset(n, T, stride_b, stride_t, VEC: tl.constexpr):
    """Offset of row n of (B, T, V); strides count vectors of VEC elements, so that the compiler knows the alignment."""
    b = n // T
    t = n - b * T
    return (b.to(tl.int64) * stride_b + t.to(tl.int64) * stride_t) * VEC


@triton.jit
def tile_offsets(DEPTH: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr):
    return tl.arange(0, DEPTH)[:, None] * (LANES * VEC) + tl.arange(0, LANES * VEC)[None, :]


@triton.jit
def tail_offsets(V: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr):
    """Offsets and mask of the last, partial tile; VEC divides V, so a vector is inside or outside as a whole."""
    TAIL: tl.constexpr = V % (DEPTH * LANES * VEC)
    TAIL_DEPTH: tl.constexpr = triton.next_power_of_2(triton.cdiv(TAIL, LANES * VEC))
    offsets = tile_offsets(TAIL_DEPTH, LANES, VEC)
    return V - TAIL + offsets, offsets // VEC < TAIL // VEC


@triton.jit
def _max_in_lane(x, LANES: tl.constexpr, VEC: tl.constexpr):
    return tl.max(tl.max(x.reshape(x.shape[0], LANES, VEC), 2), 0)


@triton.jit
def _sum_in_lane(x, LANES: tl.constexpr, VEC: tl.constexpr):
    return tl.sum(tl.sum(x.reshape(x.shape[0], LANES, VEC), 2), 0)


@triton.jit
def _accumulate(logits, scale, lane_max, lane_sum, lane_moment, LANES: tl.constexpr, VEC: tl.constexpr):
    """Add a tile to the lanes' maximum m, sum of 2^d and sum of d * 2^d, where d = (logits - m) * scale."""
    logits = logits.to(lane_max.dtype)
    new_max = tl.maximum(lane_max, _max_in_lane(logits, LANES, VEC))
    shift = tl.maximum((lane_max - new_max) * scale, FLOOR)
    kept = tl.exp2(shift)
    # The maximum is subtracted before anything is multiplied: exact for neighbours of the maximum, whatever its size.
    spread = new_max[:, None].broadcast_to(LANES, VEC).reshape(1, LANES * VEC)
    d = (logits - spread) * scale
    e = tl.exp2(d)
    lane_moment = kept * (lane_moment + shift * lane_sum) + _sum_in_lane(e * tl.maximum(d, FLOOR), LANES, VEC)
    lane_sum = kept * lane_sum + _sum_in_lane(e, LANES, VEC)
    return new_max, lane_sum, lane_moment


@triton.jit
def _row_sums(
    row_ptr, scale, V: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr, LEAST: tl.constexpr
):  # fmt: skip
    """Maximum m of a row, sum of 2^d and sum of d * 2^d."""
    TILE: tl.constexpr = DEPTH * LANES * VEC
    lane_max = tl.full((LANES,), LEAST, scale.dtype)
    lane_sum = tl.zeros((LANES,), scale.dtype)
    lane_moment = tl.zeros((LANES,), scale.dtype)
    offsets = tile_offsets(DEPTH, LANES, VEC)
    for i in range(V // TILE):
        logits = tl.load(row_ptr + i * TILE + offsets)
        lane_max, lane_sum, lane_moment = _accumulate(logits, scale, lane_max, lane_sum, lane_moment, LANES, VEC)
    if V % TILE != 0:
        tail, inside = tail_offsets(V, DEPTH, LANES, VEC)
        tail_logits = tl.load(row_ptr + tail, mask=inside, other=-float("inf"))
        lane_max, lane_sum, lane_moment = _accumulate(tail_logits, scale, lane_max, lane_sum, lane_moment, LANES, VEC)
    row_max = tl.max(lane_max, 0)
    shift = tl.maximum((lane_max - row_max) * scale, FLOOR)
    kept = tl.exp2(shift)
    return row_max, tl.sum(kept * lane_sum, 0), tl.sum(kept * (lane_moment + shift * lane_sum), 0)


@triton.jit
def row_statistics(
    row_ptr, target, inverse_temperature,
    V: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """logprob, entropy, row_max, log_sum of one row, as `reference.logprobs_entropy` defines them."""
    dtype: tl.constexpr = inverse_temperature.dtype
    LEAST: tl.constexpr = LEAST_FP64 if dtype == tl.float64 else LEAST_FP32
    target_logit = tl.load(row_ptr + target).to(dtype)
    row_max, total, moment = _row_sums(row_ptr, inverse_temperature * LOG2E, V, DEPTH, LANES, VEC, LEAST)
    nothing_finite = total == 0
    row_max = tl.where(nothing_finite, -float("inf"), row_max)
    row_max = tl.where((total != total) & (row_max < float("inf")), float("nan"), row_max)
    log_sum = tl.where(nothing_finite, float("nan"), tl.log(total))
    logprob = (target_logit - row_max) * inverse_temperature - log_sum
    entropy = log_sum - moment / total * LN2
    return logprob, entropy, row_max, log_sum


@triton.jit
def _tile_gradient(
    logits, offsets, start, target, inverse_temperature, row_max, log_sum, entropy, grad_logprob, grad_entropy,
    SIZE: tl.constexpr,
):  # fmt: skip
    """Gradient of one tile, rounded: p * (level + slope * log2 p), and (1 - p) in place of -p at the target."""
    scale = inverse_temperature * LOG2E
    log2_sum = log_sum * LOG2E
    slope = -inverse_temperature * grad_entropy * LN2
    entropy_level = -inverse_temperature * grad_entropy * entropy
    to_target = inverse_temperature * grad_logprob
    d = (logits.to(row_max.dtype) - row_max) * scale - log2_sum
    grad = (tl.exp2(d) * (slope * tl.maximum(d, FLOOR) + (entropy_level - to_target))).to(logits.dtype)
    # One tile of the row holds the target: a comparison per element in all the others would cost two instructions each.
    # Its lane computes it anew from the logit, so that nothing but the logits is kept for this branch.
    if (target >= start) & (target < start + SIZE):
        here = offsets == target
        logit = tl.max(tl.max(tl.where(here, logits, -float("inf")), 1), 0).to(row_max.dtype)
        log2_p = (logit - row_max) * scale - log2_sum
        p = tl.exp2(log2_p)
        at_target = p * (slope * tl.maximum(log2_p, FLOOR) + entropy_level) + to_target * (1 - p)
        grad = tl.where(here, at_target.to(logits.dtype), grad)
    return grad


@triton.jit
def write_row_gradient(
    row_ptr, grad_ptr, target, inverse_temperature, row_max, log_sum, entropy, grad_logprob, grad_entropy,
    V: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """Gradient of one row, from its end to its start: what was read last is what the L2 cache still holds."""
    TILE: tl.constexpr = DEPTH * LANES * VEC
    FULL: tl.constexpr = V // TILE * TILE
    if V % TILE != 0:
        tail, inside = tail_offsets(V, DEPTH, LANES, VEC)
        logits = tl.load(row_ptr + tail, mask=inside, other=0.0)
        grad = _tile_gradient(
            logits, tail, FULL, target, inverse_temperature, row_max, log_sum, entropy, grad_logprob, grad_entropy,
            TILE,
        )  # fmt: skip
        tl.store(grad_ptr + tail, grad, mask=inside)
    tile = tile_offsets(DEPTH, LANES, VEC)
    for i in range(V // TILE):
        start = FULL - TILE - i * TILE
        offsets = start + tile
        full_logits = tl.load(row_ptr + offsets)
        full_grad = _tile_gradient(
            full_logits, offsets, start, target,
            inverse_temperature, row_max, log_sum, entropy, grad_logprob, grad_entropy, TILE,
        )  # fmt: skip
        tl.store(grad_ptr + offsets, full_grad)


@triton.jit
def fill_row(row_ptr, value, V: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr):
    TILE: tl.constexpr = DEPTH * LANES * VEC
    offsets = tile_offsets(DEPTH, LANES, VEC)
    value = tl.full((), value, row_ptr.dtype.element_ty)
    for i in range(V // TILE):
        tl.store(row_ptr + i * TILE + offsets, tl.broadcast_to(value, (DEPTH, LANES * VEC)))
    if V % TILE != 0:
        tail, inside = tail_offsets(V, DEPTH, LANES, VEC)
        tl.store(row_ptr + tail, tl.broadcast_to(value, tail.shape), mask=inside)


@triton.jit
def scale_row(row_ptr, scale, V: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr):
    TILE: tl.constexpr = DEPTH * LANES * VEC
    dtype: tl.constexpr = row_ptr.dtype.element_ty
    offsets = tile_offsets(DEPTH, LANES, VEC)
    for i in range(V // TILE):
        pointers = row_ptr + i * TILE + offsets
        tl.store(pointers, (tl.load(pointers).to(scale.dtype) * scale).to(dtype))
    if V % TILE != 0:
        tail, inside = tail_offsets(V, DEPTH, LANES, VEC)
        values = tl.load(row_ptr + tail, mask=inside).to(scale.dtype) * scale
        tl.store(row_ptr + tail, values.to(dtype), mask=inside)
