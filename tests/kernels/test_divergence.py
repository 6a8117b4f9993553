"""mode_divergence on every backend: float64 truth, small KLs, and the numerical rules of the kernels one by one."""

import pytest
import torch
import truth

from policy_split import mode_divergence

INF, NAN = float("inf"), float("nan")


def pair(seed, *shape, dtype=torch.float32, device="cpu", scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(shape, generator=generator) * scale).to(dtype).to(device) for _ in range(2)]


def outputs_and_gradients(a, b, **options):
    """The four outputs, and of each of them by itself the gradients of both sides."""
    leaves = a.detach().requires_grad_(), b.detach().requires_grad_()
    out = mode_divergence(*leaves, **options)
    gradients = [torch.autograd.grad(x.sum(), leaves, retain_graph=True) for x in out]
    return type(out)(*(x.detach() for x in out)), [x for both in gradients for x in both]


def check(a, b, temperature=1.0, mask=None, one_hot=False):
    """Values and gradients against the truth, under random upstreams; one_hot: row n has one of output n % 4 alone."""
    leaves = a.detach().requires_grad_(), b.detach().requires_grad_()
    out = mode_divergence(*leaves, temperature=temperature, mask=mask)
    wide = torch.float64 if a.dtype == torch.float64 else torch.float32
    assert [(x.shape, x.dtype) for x in out] == [(a.shape[:-1], wide)] * 4
    exact = [x.detach().double().reshape(-1, a.shape[-1]).requires_grad_() for x in (a, b)]
    rows = torch.as_tensor(temperature, dtype=torch.float64, device=a.device).reshape(-1)
    valid = torch.ones(a.shape[:-1], device=a.device) if mask is None else mask.double()
    expected = [x * valid.reshape(-1) for x in truth.divergence(*exact, rows)]
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if wide == torch.float64 else {"rtol": 2e-6, "atol": 4e-6}
    for x, y in zip(out, expected, strict=True):
        torch.testing.assert_close(x.reshape(-1).double(), y, **tolerance)
    generator = torch.Generator().manual_seed(1)
    upstream = torch.randn(4, valid.numel(), generator=generator).to(a.device, wide)
    if one_hot:
        upstream *= torch.arange(valid.numel(), device=a.device) % 4 == torch.arange(4, device=a.device)[:, None]
    grads = torch.autograd.grad(out, leaves, [x.view(valid.shape) for x in upstream])
    true = torch.autograd.grad(expected, exact, list(upstream.double()))
    # What cancels in a gradient: p * (gap - KL) / temperature, whose gap is at most that of two rows of this spread.
    finite = [x.detach().masked_fill(x == -INF, 0.0) for x in exact]
    spread = sum(x.amax(-1) - x.amin(-1) for x in finite) / rows
    terms = upstream.abs().sum(0).double() * (1 + spread / 10) / rows
    for x, y in zip(grads, true, strict=True):
        truth.assert_gradient_close(x.reshape(y.shape), y, a.dtype, terms=terms)
    return grads


# 1: a vocabulary of one. 2, 7: below one vector. 1023: no whole tile. 2053: a prime just above the CPU's tile of 2048.
SIZES = [(size, dtype) for size in (1, 2, 7, 1023, 2053, 5000) for dtype in (torch.float32, torch.bfloat16)]
SIZES += [(size, dtype) for size in (7, 2053) for dtype in (torch.float16, torch.float64)]


@pytest.mark.parametrize(("vocabulary", "dtype"), SIZES)
def test_values_and_gradients(device, dtype, vocabulary):
    check(*pair(vocabulary, 4, vocabulary, dtype=dtype, device=device), one_hot=True)


def test_literal(device):
    """(1/2, 1/2) and (3/4, 1/4)."""
    a, b = torch.zeros(2, device=device), torch.tensor([3.0, 1.0], device=device).log()
    expected = [0.1438410362, 0.1308120359, 0.6931471806, 0.5623351446]  # ln 2 - ln 3 / 2, ln 3 * 3/4 - ln 2, ln 2, H
    assert [x.item() for x in mode_divergence(a, b)] == pytest.approx(expected, abs=2e-7)


@pytest.mark.parametrize("slopes", [(80, 80), (80, -80), (-80, 80), (0, 80)])
def test_a_maximum_that_moves_from_tile_to_tile(device, slopes):
    ramp = torch.linspace(-1, 1, 5000, device=device)
    check(*(x + slope * ramp for x, slope in zip(pair(0, 1, 5000, device=device), slopes, strict=True)))


def test_shapes_strides_and_temperatures(device):
    """Every leading shape, and rows of a and b that lie differently in memory; a vector of bfloat16 is the longest."""
    a, b = pair(0, 2, 3, 60, dtype=torch.bfloat16, device=device)
    check(a[0, 0], b[0, 0])
    check(a[0], b[0])
    check(a[:, :-1], b[:, 1:])
    check(a[:, :-1], b[:, :2].contiguous())
    check(a[..., 7:57], b[..., :50])
    check(a.transpose(0, 1), b.transpose(0, 1).contiguous(), temperature=0.6)
    check(a.view(2, 3, 4, 15)[:, :, ::2, ::3], b.view(2, 3, 6, 10)[:, :, :4:2, :5])
    check(a[:1].expand(2, 3, 60), b)
    temperature = torch.linspace(0.5, 1.5, 6, device=device).view(2, 3)
    check(a, b, temperature=temperature)
    check(a, b, temperature=torch.tensor(0.7, device=device), mask=temperature > 0.8)


@pytest.mark.parametrize("size", [1e-3, 1e-4, 1e-5])
def test_a_small_kl_keeps_its_digits(backend, device, size):
    """log p is down to -11.8 and its rounding 1e-6; averaging gaps leaves 4e-7: relative to the KL 4e-7 / size."""
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(8, 2053, generator=generator).mul(-6).to(device)
    b = a + torch.randn(8, 2053, generator=generator).mul((2 * size) ** 0.5).to(device)
    exact, eager, ours = ([x.requires_grad_() for x in two] for two in (
        (a.double(), b.double()), (a.clone(), b.clone()), (a.clone(), b.clone())
    ))  # fmt: skip
    expected, theirs, out = truth.divergence(*exact), truth.divergence(*eager), mode_divergence(*ours)
    for k in range(2):
        assert 0.8 * size < expected[k].mean() < 1.2 * size
        truth.assert_as_exact_as_eager(out[k], theirs[k], expected[k], floor=2e-8)
        if backend != "torch":
            torch.testing.assert_close(out[k].double(), expected[k], rtol=0, atol=4e-7)
        grads = (
            torch.autograd.grad(x[k].sum(), leaves, retain_graph=True)
            for x, leaves in ((out, ours), (theirs, eager), (expected, exact))
        )
        for x, y, z in zip(*grads, strict=True):
            truth.assert_as_exact_as_eager(x, y, z, floor=1.5e-10)  # p is 5e-4, and p and q are rounded to 3e-11


@pytest.mark.parametrize("dtype", truth.DTYPES, ids=str)
def test_the_kl_of_a_row_from_itself_is_zero(device, dtype):
    a, _ = pair(0, 1, 2053, dtype=dtype, device=device, scale=6)
    (kl_ab, kl_ba, entropy_a, entropy_b), gradients = outputs_and_gradients(a, a.clone(), temperature=0.7)
    assert (kl_ab == 0).all()
    assert (kl_ba == 0).all()
    assert torch.equal(entropy_a, entropy_b)
    for x in gradients[:4]:
        assert x.abs().max() < 1e-6


@pytest.mark.parametrize("offset", [1e4, -1e4, 3e5])
def test_an_offset_of_either_side_changes_nothing(device, offset):
    """Multiples of 1/32 stay exact under these offsets in float32: results must agree to the last bits."""
    a, b = (x.mul(32).round().div(32).expand(4, -1) for x in pair(0, 1, 2053, device=device))
    moved = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, -1.0]], device=device) * offset
    out, gradients = outputs_and_gradients(a + moved[:, :1], b + moved[:, 1:])
    for x in (*out, *gradients):
        torch.testing.assert_close(x[1:], x[:1].expand_as(x[1:]), rtol=2e-6, atol=2e-7)


# The whole leading tile of the CPU and of the GPU, the last token, all but the first, every other one.
DEAD = pytest.mark.parametrize("dead", [slice(2048), slice(2052, 2053), slice(1, 2053), slice(0, 2053, 2)], ids=str)


@DEAD
@pytest.mark.parametrize("dtype", truth.DTYPES, ids=str)
def test_minus_inf_in_both_adds_nothing(device, dtype, dead):
    a, b = pair(0, 2, 2053, dtype=dtype, device=device)
    a[1, dead] = b[1, dead] = -INF
    assert all((x[1, dead] == 0).all() for x in check(a, b))


@pytest.mark.parametrize(
    ("dead", "depth"),  # e^-300 is 0 in float32: the token can be drawn all the same
    [(slice(2048), 0), (slice(2048), -300), (slice(2052, 2053), -300), (slice(1, 2053), 0), (slice(0, 2053, 2), 0)],
)
def test_minus_inf_on_one_side_is_an_infinite_kl(device, dead, depth):
    """KL(own || other) of a token that other never draws; the other three are finite, and so are their gradients."""
    own, other = pair(0, 1, 2053, device=device)
    clean = torch.zeros_like(own)
    own[0, dead] += depth
    other[0, dead] = -INF
    a, b = torch.cat((own, other, clean)), torch.cat((other, own, clean))
    out, gradients = outputs_and_gradients(a, b)
    for x, y in zip(out, truth.divergence(a.double(), b.double()), strict=True):
        torch.testing.assert_close(x.double(), y, rtol=2e-6, atol=4e-6)
    assert out.kl_ab.isinf().tolist() == [True, False, False]
    assert out.kl_ba.isinf().tolist() == [False, True, False]
    likely = own[0] > own.max() - 50
    for k, x in enumerate(gradients):  # of kl_ab in a, of kl_ab in b, of kl_ba in a, of kl_ba in b, ...
        averaging = {0: 0, 3: 1}.get(k)  # the row whose gradient averages over an infinite gap
        assert [row.isfinite().all() for row in x] == [n != averaging for n in range(3)]
        assert averaging is None or x[averaging, likely].isnan().all()
    torch.testing.assert_close(gradients[1], torch.softmax(b, -1) - torch.softmax(a, -1), rtol=1e-5, atol=1e-7)


def test_an_infinite_kl_without_upstream_leaves_the_gradient_alone(device):
    a, b = (x.requires_grad_() for x in pair(0, 2, 40, device=device))
    out = mode_divergence(a, torch.where(torch.arange(40, device=device) == 3, -INF, b))
    zeros, ones = torch.zeros(2, device=device), torch.ones(2, device=device)
    grads = torch.autograd.grad(out, (a, b), [zeros, ones, ones, ones])
    assert (out.kl_ab == INF).all()
    assert all(x.isfinite().all() and x.any() for x in grads)


@pytest.mark.parametrize(
    ("position", "value", "dtype"),
    [
        (0, NAN, torch.float32), (2047, INF, torch.bfloat16), (2048, NAN, torch.float16), (2052, INF, torch.float32),
        (slice(2053), -INF, torch.float32),
    ],
)  # fmt: skip
def test_a_row_without_a_distribution_is_nan(device, position, value, dtype):
    """A NaN, a +inf, or nothing but -inf, as in torch; the other side's entropy and the other rows do not see it."""
    a, b = pair(0, 3, 2053, dtype=dtype, device=device)
    clean, clean_gradients = outputs_and_gradients(a, b)
    a[1, position] = b[2, position] = value
    out, gradients = outputs_and_gradients(a, b)
    for x in (*out[:2], *gradients[:4]):
        assert x[1:].isnan().all()
    for side in (0, 1):
        for x, y in ((out[2 + side], clean[2 + side]), (gradients[4 + 3 * side], clean_gradients[4 + 3 * side])):
            assert x[1 + side].isnan().all()
            assert torch.equal(x[2 - side], y[2 - side])
        assert (gradients[5 + side] == 0).all()  # of an entropy, to the other side
    for x, y in zip((*out, *gradients), (*clean, *clean_gradients), strict=True):
        assert torch.equal(x[0], y[0])


def test_masked_rows_are_not_read(device):
    a, b = pair(0, 5, 300, device=device)
    expected, true_gradients = outputs_and_gradients(a[::2], b[::2])
    a[1], b[1], b[3] = NAN, INF, -INF
    mask = torch.tensor([1, 0, 1, 0, 1], device=device)
    temperature = torch.where(mask == 1, 1.0, 3.0)
    out, gradients = outputs_and_gradients(a, b, mask=mask, temperature=temperature)
    for x, y in zip((*out, *gradients), (*expected, *true_gradients), strict=True):
        assert (x[1::2] == 0).all()
        assert torch.equal(x[::2], y)


@pytest.mark.parametrize("vocabulary", [40, 2053])
def test_extreme_finite_logits(device, vocabulary):
    """finfo.min is a usual mask value: in both rows, in one alone, in a whole row; and finfo.max leaves one token."""
    least, most = torch.finfo(torch.float32).min, torch.finfo(torch.float32).max
    a, b = pair(0, 4, vocabulary, device=device)
    a[0, 1::2] = b[0, 1::2] = least
    a[1] = b[1] = least
    a[2, 0] = b[2, 0] = most
    a[3] = least  # uniform; b is not
    out, gradients = outputs_and_gradients(a, b)
    for x, y in zip(out, truth.divergence(a.double(), b.double()), strict=True):
        torch.testing.assert_close(x.double(), y, rtol=2e-6, atol=4e-6)
    assert all(x.isfinite().all() for x in gradients)
    a[0, 1] = 0.0
    assert mode_divergence(a, b).kl_ab[0] > 1e30  # least is finite, and b nearly never draws it


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_does_not_depend_on_its_batch(device, dtype):
    """Bitwise: in another order, alone."""
    a, b = pair(0, 5, 2053, dtype=dtype, device=device)
    whole, gradients = outputs_and_gradients(a, b)
    for rows in (torch.tensor([3, 1, 4, 0, 2]), torch.tensor([4])):
        part, part_gradients = outputs_and_gradients(a[rows], b[rows])
        for x, y in zip((*whole, *gradients), (*part, *part_gradients), strict=True):
            assert torch.equal(x[rows], y)


def test_rows_more_than_two_billion_elements_apart(device):
    """Only the two rows are touched of the memory that lies between them."""
    far = torch.empty(2**31 + 100, dtype=torch.bfloat16, device=device).as_strided((2, 50), (2**31, 1))
    near, values = pair(0, 2, 50, dtype=torch.bfloat16, device=device)
    far.copy_(values)
    check(far, near)
    check(near[:, None], far[:, None])


@pytest.mark.parametrize("side", [0, 1])
def test_the_gradient_of_one_side_alone(device, side):
    rows = pair(0, 3, 120, device=device)
    kept = [x.clone() for x in rows]
    both = [x.clone().requires_grad_() for x in rows]
    expected = torch.autograd.grad(sum(x.sum() for x in mode_divergence(*both)), both)[side]
    rows[side].requires_grad_()
    sum(x.sum() for x in mode_divergence(*rows)).backward()
    assert torch.equal(rows[side].grad, expected)
    assert rows[1 - side].grad is None
    assert all(torch.equal(x, y) for x, y in zip(rows, kept, strict=True))


def test_going_backward_twice_and_stride_zero_upstreams(device):
    a, b = (x.requires_grad_() for x in pair(0, 3, 120, device=device))
    out = mode_divergence(a, b)
    once = torch.autograd.grad(out.kl_ab, (a, b), torch.full((3,), 3.0, device=device), retain_graph=True)
    kept = [x.clone() for x in once]
    again = torch.autograd.grad(out.kl_ab, (a, b), torch.tensor(1.5, device=device).expand(3), retain_graph=True)
    for x, y, z in zip(once, kept, again, strict=True):
        assert torch.equal(x, y)
        torch.testing.assert_close(2 * z, x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5), (0, 0, 1)])
def test_nothing_at_all(device, shape):
    a, b = (x.requires_grad_() for x in pair(0, *shape, device=device))
    out = mode_divergence(a, b)
    assert [x.shape for x in out] == [shape[:-1]] * 4
    sum(x.sum() for x in out).backward()
    assert a.grad.shape == b.grad.shape == shape


@pytest.mark.parametrize("backend", ["torch", "native"], indirect=True)
@pytest.mark.parametrize(
    ("b", "options", "error", "words"),
    [
        (torch.ones(2, 5), {}, ValueError, r"same shape, got \(2, 4\) and \(2, 5\)"),
        (torch.ones(2, 4, dtype=torch.float64), {}, TypeError, "same dtype, got torch.float32 and torch.float64"),
        (torch.ones(2, 4, device="meta"), {}, ValueError, "same device, got cpu and meta"),
        ([[1.0]], {}, TypeError, "logits must be a tensor, got list"),
        (torch.ones(2, 4), {"mask": torch.ones(2, 4)}, ValueError, r"mask has shape \(2, 4\); expected \(2,\)"),
    ],
)
def test_bad_input(backend, b, options, error, words):
    with pytest.raises(error, match=words):
        mode_divergence(torch.zeros(2, 4), b, **options)
