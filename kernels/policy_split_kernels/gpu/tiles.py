"""GPU: how a program reads and writes the tiles of one row of logits (device functions).

A tile has shape (DEPTH, LANES * VEC): a lane is a thread, and it holds DEPTH vectors of VEC neighbours, so that a load
is VEC elements (16 bytes where the row allows it). Seen as (DEPTH, LANES, VEC), reductions over the first and the last
axis stay inside the thread. (Loads of three axes are laid out differently by Triton 3.6 and 3.9.)

`transform` is (softcap, keep_ptr), either may be None: what makes the x of `reference` of a logit.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
MINUS_INF = tl.constexpr(float("-inf"))
TWO_BFLOAT16_MINUS_INF = tl.constexpr(-0x7F0080)  # 0xFF80FF80 as int32
TANH_SMALL = tl.constexpr(0.55)


@triton.jit
def row_offset(n, T, stride_b, stride_t, VEC: tl.constexpr):
    """Offset of row n of (B, T, V); strides count vectors of VEC elements, so that the compiler knows the alignment."""
    b = n // T
    t = n - b * T
    return (b.to(tl.int64) * stride_b + t.to(tl.int64) * stride_t) * VEC


@triton.jit
def _tile_offsets(V: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr, TAIL: tl.constexpr):
    TAIL_DEPTH: tl.constexpr = triton.next_power_of_2(triton.cdiv(V % (DEPTH * LANES * VEC), LANES * VEC))
    return tl.arange(0, TAIL_DEPTH if TAIL else DEPTH)[:, None] * (LANES * VEC) + tl.arange(0, LANES * VEC)[None, :]


@triton.jit
def tile_pointers(
    row_ptr, i, V: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr, TAIL: tl.constexpr
):
    """Pointers to tile i of a row; the last, partial one is a TAIL of no more depth than it needs."""
    TAIL_DEPTH: tl.constexpr = triton.next_power_of_2(triton.cdiv(V % (DEPTH * LANES * VEC), LANES * VEC))
    # The depth comes last, so that it is the constant in a load's address.
    first = row_ptr + i * (DEPTH * LANES * VEC) + tl.arange(0, LANES * VEC)[None, :]
    return first + tl.arange(0, TAIL_DEPTH if TAIL else DEPTH)[:, None] * (LANES * VEC)


@triton.jit
def tail_inside(V: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr):
    """Which elements of the tail are; VEC divides V, so a vector is inside or outside as a whole."""
    return _tile_offsets(V, DEPTH, LANES, VEC, True) // VEC < V % (DEPTH * LANES * VEC) // VEC


@triton.jit
def _load(
    row_ptr, i, other, V: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr, TAIL: tl.constexpr
):
    pointers = tile_pointers(row_ptr, i, V, DEPTH, LANES, VEC, TAIL)
    inside = tail_inside(V, DEPTH, LANES, VEC) if TAIL else None
    return tl.load(pointers, mask=inside, other=other if TAIL else None)


@triton.jit
def store_tile(
    row_ptr, i, values,
    V: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """Round and store tile i, past what the L2 cache keeps of rows that are read again."""
    pointers = tile_pointers(row_ptr, i, V, DEPTH, LANES, VEC, TAIL)
    values = tl.broadcast_to(values.to(row_ptr.dtype.element_ty), pointers.shape)
    tl.store(pointers, values, mask=tail_inside(V, DEPTH, LANES, VEC) if TAIL else None, cache_modifier=".cs")


@triton.jit
def _load_tile(
    row_ptr, i, dtype: tl.constexpr, V: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr,
    TAIL: tl.constexpr,
):  # fmt: skip
    """Logits of tile i, converted; -inf outside of the row."""
    if row_ptr.dtype.element_ty == tl.bfloat16 and VEC > 1:
        # Two bfloat16 are the halves of one word, and each becomes float32 by one instruction; alone it takes two.
        words_ptr = row_ptr.to(tl.pointer_type(tl.int32), bitcast=True)
        words = _load(words_ptr, i, TWO_BFLOAT16_MINUS_INF, V // 2, DEPTH, LANES, VEC // 2, TAIL)
        first = (words << 16).to(tl.float32, bitcast=True)
        second = (words & -65536).to(tl.float32, bitcast=True)
        logits = tl.join(first, second).reshape(words.shape[0], LANES * VEC)
    else:
        logits = _load(row_ptr, i, MINUS_INF, V, DEPTH, LANES, VEC, TAIL)
    return logits.to(dtype)


@triton.jit
def _tanh(t):
    """t + t^3 * p(t^2) near 0, to 4e-9 (float64: 1e-16); from TANH_SMALL on 1 - 2 / (1 + exp(2 |t|)) is as good."""
    dtype: tl.constexpr = t.dtype
    s = t * t
    if dtype == tl.float64:
        p = (5.390642014172176e-05 * s - 0.00021454222089075102) * s + 0.0005817724407868131
        p = ((p * s - 0.0014541180436174583) * s + 0.003591904413192802) * s - 0.008863217663269123
        p = ((p * s + 0.021869487712363182) * s - 0.05396825394889914) * s + 0.13333333333315647
        p = p * s - 0.3333333333333331
    else:
        p = (0.021309388664443474 - 0.006610227831114734 * s) * s - 0.05390942882746055
        p = (p * s + 0.1333311372902087) * s - 0.3333333200797698
    size = tl.abs(t)
    large = 1 - 2 / (1 + tl.exp2(size * (2 * LOG2E)))
    return tl.where(size < TANH_SMALL, t + t * s * p, tl.where(t < 0, -large, large))


@triton.jit
def _transformed(logits, keep, softcap):
    """x of `reference`; `softcap` is a float64 number or None, `keep` bool or None."""
    if softcap is not None:
        # The inverse in two parts: a plain division of each logit costs eight instructions.
        inverse = (1 / softcap).to(logits.dtype)
        remainder = (1 / softcap - inverse).to(logits.dtype)
        capped = softcap.to(logits.dtype) * _tanh(tl.fma(logits, inverse, logits * remainder))
        logits = tl.where(tl.abs(logits) == float("inf"), logits, capped)
    return logits if keep is None else tl.where(keep, logits, MINUS_INF)


@triton.jit
def softcap_slope(x, softcap):
    """dx / dz; 0 at an infinite x, which stands for a logit that no small step moves."""
    t = x * (1 / softcap).to(x.dtype)
    return tl.where(tl.abs(x) == float("inf"), 0.0, 1 - t * t)


@triton.jit
def load_x(
    row_ptr, transform, i, dtype: tl.constexpr,
    V: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """x of tile i in the statistics dtype, -inf outside of the row."""
    softcap, keep_ptr = transform
    logits = _load_tile(row_ptr, i, dtype, V, DEPTH, LANES, VEC, TAIL)
    keep = None
    if keep_ptr is not None:
        keep = _load(keep_ptr, i, 0, V, DEPTH, LANES, VEC, TAIL) != 0
    return _transformed(logits, keep, softcap)


@triton.jit
def load_target_x(row_ptr, transform, target, dtype: tl.constexpr):
    """x of the target; of some column where the target is none (below 0)."""
    softcap, keep_ptr = transform
    target = tl.maximum(target, 0)
    keep = None if keep_ptr is None else tl.load(keep_ptr + target) != 0
    return _transformed(tl.load(row_ptr + target).to(dtype), keep, softcap)


@triton.jit
def fill_row(row_ptr, value, V: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr):
    TILES: tl.constexpr = V // (DEPTH * LANES * VEC)
    value = tl.full((1, 1), value, row_ptr.dtype.element_ty)
    for i in range(TILES):
        store_tile(row_ptr, i, value, V, DEPTH, LANES, VEC, False)
    if V % (DEPTH * LANES * VEC) != 0:
        store_tile(row_ptr, TILES, value, V, DEPTH, LANES, VEC, True)


@triton.jit
def scale_row(row_ptr, scale, V: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr):
    """In place. No hazard between warps: a thread overwrites what it alone has read."""
    TILES: tl.constexpr = V // (DEPTH * LANES * VEC)
    for i in range(TILES):
        x = _load_tile(row_ptr, i, scale.dtype, V, DEPTH, LANES, VEC, False)
        store_tile(row_ptr, i, x * scale, V, DEPTH, LANES, VEC, False)
    if V % (DEPTH * LANES * VEC) != 0:
        tail_x = _load_tile(row_ptr, TILES, scale.dtype, V, DEPTH, LANES, VEC, True)
        store_tile(row_ptr, TILES, tail_x * scale, V, DEPTH, LANES, VEC, True)
