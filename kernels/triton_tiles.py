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
# tanh(t) = t + t^3 * polynomial(t^2) below this, to 4e-9 and 1e-16; above it 1 - 2 / (1 + exp(2t)) is as good.
TANH_SMALL = tl.constexpr(0.55)
TANH_FP32 = tl.constexpr(
    (-0.006610227831114734, 0.021309388664443474, -0.05390942882746055, 0.1333311372902087, -0.3333333200797698)
)
TANH_FP64 = tl.constexpr((
    5.390642014172176e-05, -0.00021454222089075102, 0.0005817724407868131, -0.0014541180436174583,
    0.003591904413192802, -0.008863217663269123, 0.021869487712363182, -0.05396825394889914, 0.13333333333315647,
    -0.3333333333333331,
))  # fmt: skip


@triton.jit
def row_offset(n, T, stride_b, stride_t, VEC: tl.constexpr):
    """Offset of row n of (B, T, V); strides count vectors of VEC elements, so that the compiler knows the alignment."""
    b = n // T
    t = n - b * T
    return (b.to(tl.int64) * stride_b + t.to(tl.int64) * stride_t) * VEC


@triton.jit
def tile_pointers(
    row_ptr, i, V: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr, TAIL: tl.constexpr
):
    """Pointers to tile i of a row, and which of them are inside of it: None for all, but for the last, partial tile.

    VEC divides V, so a vector is inside or outside as a whole.
    """
    TILE: tl.constexpr = DEPTH * LANES * VEC
    REST: tl.constexpr = V % TILE
    TILE_DEPTH: tl.constexpr = triton.next_power_of_2(triton.cdiv(REST, LANES * VEC)) if TAIL else DEPTH
    offsets = tl.arange(0, TILE_DEPTH)[:, None] * (LANES * VEC) + tl.arange(0, LANES * VEC)[None, :]
    inside = offsets // VEC < REST // VEC if TAIL else None
    return row_ptr + i * TILE + offsets, inside


@triton.jit
def _load_tile(
    row_ptr, i, dtype: tl.constexpr, V: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr,
    TAIL: tl.constexpr,
):  # fmt: skip
    """Logits of tile i, converted; -inf outside of the row."""
    if row_ptr.dtype.element_ty == tl.bfloat16 and VEC > 1:
        # Two bfloat16 are the halves of one word, and each becomes float32 by one instruction; alone it takes two.
        words_ptr = row_ptr.to(tl.pointer_type(tl.int32), bitcast=True)
        pointers, inside = tile_pointers(words_ptr, i, V // 2, DEPTH, LANES, VEC // 2, TAIL)
        words = tl.load(pointers, mask=inside, other=TWO_BFLOAT16_MINUS_INF if TAIL else None)
        first = (words << 16).to(tl.float32, bitcast=True)
        second = (words & -65536).to(tl.float32, bitcast=True)
        logits = tl.join(first, second).reshape(words.shape[0], LANES * VEC)
    else:
        pointers, inside = tile_pointers(row_ptr, i, V, DEPTH, LANES, VEC, TAIL)
        logits = tl.load(pointers, mask=inside, other=MINUS_INF if TAIL else None)
    return logits.to(dtype)


@triton.jit
def _tanh(t):
    dtype: tl.constexpr = t.dtype
    COEFFICIENTS: tl.constexpr = TANH_FP64 if dtype == tl.float64 else TANH_FP32
    square = t * t
    polynomial = tl.zeros_like(t)
    for k in tl.static_range(len(COEFFICIENTS)):
        polynomial = tl.fma(polynomial, square, COEFFICIENTS[k])
    size = tl.abs(t)
    large = 1 - 2 / (1 + tl.exp2(size * (2 * LOG2E)))
    return tl.where(size < TANH_SMALL, tl.fma(t * square, polynomial, t), tl.where(t < 0, -large, large))


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
        pointers, inside = tile_pointers(keep_ptr, i, V, DEPTH, LANES, VEC, TAIL)
        keep = tl.load(pointers, mask=inside, other=0 if TAIL else None) != 0
    return _transformed(logits, keep, softcap)


@triton.jit
def load_target_x(row_ptr, transform, target, dtype: tl.constexpr):
    softcap, keep_ptr = transform
    keep = None if keep_ptr is None else tl.load(keep_ptr + target) != 0
    return _transformed(tl.load(row_ptr + target).to(dtype), keep, softcap)


@triton.jit
def fill_row(row_ptr, value, V: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr):
    TILE: tl.constexpr = DEPTH * LANES * VEC
    value = tl.full((), value, row_ptr.dtype.element_ty)
    for i in range(V // TILE):
        pointers, _ = tile_pointers(row_ptr, i, V, DEPTH, LANES, VEC, False)
        tl.store(pointers, tl.broadcast_to(value, pointers.shape))
    if V % TILE != 0:
        tail, inside = tile_pointers(row_ptr, V // TILE, V, DEPTH, LANES, VEC, True)
        tl.store(tail, tl.broadcast_to(value, tail.shape), mask=inside)


@triton.jit
def scale_row(row_ptr, scale, V: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr):
    TILE: tl.constexpr = DEPTH * LANES * VEC
    dtype: tl.constexpr = row_ptr.dtype.element_ty
    for i in range(V // TILE):
        pointers, _ = tile_pointers(row_ptr, i, V, DEPTH, LANES, VEC, False)
        tl.store(pointers, (tl.load(pointers).to(scale.dtype) * scale).to(dtype))
    if V % TILE != 0:
        tail, inside = tile_pointers(row_ptr, V // TILE, V, DEPTH, LANES, VEC, True)
        tl.store(tail, (tl.load(tail, mask=inside).to(scale.dtype) * scale).to(dtype), mask=inside)
