"""Generalised Jensen-Shannon divergence: literal numbers, its ends, hostile rows, what it keeps and what it refuses."""

import math

import formulas
import pytest
import torch

from policy_split import jensen_shannon_divergence, mode_divergence

INF = math.inf


def pair(device, *shape, dtype=torch.float64, scale=2.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(device, dtype).requires_grad_()
        for _ in range(2)
    ]


@pytest.mark.parametrize(
    ("beta", "expected"),
    [
        # p = (1/4, 3/4), q = (3/4, 1/4); at 1/2 the mixture is uniform
        (0.5, 0.25 * math.log(0.5) + 0.75 * math.log(1.5)),
        # m = (0.35, 0.65) and 0.8 KL(p || m) + 0.2 KL(q || m)
        (
            0.2,
            0.8 * (0.25 * math.log(0.25 / 0.35) + 0.75 * math.log(0.75 / 0.65))
            + 0.2 * (0.75 * math.log(0.75 / 0.35) + 0.25 * math.log(0.25 / 0.65)),
        ),
        (0.0, 0.5 * math.log(3)),
        (1.0, 0.5 * math.log(3)),
    ],
)
def test_literal(device, beta, expected):
    a, b = (
        torch.tensor([x], dtype=torch.float64, device=device).log().requires_grad_()
        for x in ([0.25, 0.75], [0.75, 0.25])
    )
    out = jensen_shannon_divergence(a, b, beta=beta)
    assert out.tolist() == [pytest.approx(expected)]
    if beta == 0.5:  # weight * p * (log p - log m - KL(p || m))
        grads = torch.autograd.grad(out, (a, b))
        push = 0.5 * 0.25 * (math.log(0.5) - expected)
        assert grads[0][0].tolist() == pytest.approx([push, -push])
        assert grads[1][0].tolist() == pytest.approx([-push, push])


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_the_ends_are_the_two_kls(device, beta):
    """b is the teacher: forward KL(b || a) at 0, reverse KL(a || b) at 1. Near the ends, it over beta (1 - beta)."""
    a, b = pair(device, 2, 3, 17, scale=0.7)
    mask = torch.tensor([[1, 0, 1], [1, 1, 1]], device=device)
    out = jensen_shannon_divergence(a, b, beta=beta, temperature=0.7, mask=mask)
    other = mode_divergence(a, b, temperature=0.7, mask=mask)[0 if beta else 1]
    assert torch.equal(out, other)
    upstream = torch.randn(2, 3, device=device, dtype=torch.float64)
    for x, y in zip(*(torch.autograd.grad(z, (a, b), upstream) for z in (out, other)), strict=True):
        assert torch.equal(x, y)
    near = 1e-7 if beta == 0 else 1 - 1e-7
    limit = jensen_shannon_divergence(a, b, beta=near, temperature=0.7, mask=mask) / 1e-7
    torch.testing.assert_close(limit, out, rtol=1e-3, atol=1e-6)  # the next term is of the order of beta


def test_symmetry_and_bounds(device):
    a, b = pair(device, 5, 41, scale=9.0)
    for beta in (0.1, 0.5, 0.7):
        one, other = jensen_shannon_divergence(a, b, beta=beta), jensen_shannon_divergence(b, a, beta=1 - beta)
        torch.testing.assert_close(one, other)
        assert (one > 0).all()
        assert (one < -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)).all()
    assert not jensen_shannon_divergence(a, a).any()
    moved = jensen_shannon_divergence(a + 1e4, b - 1e4)
    torch.testing.assert_close(moved, jensen_shannon_divergence(a, b), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("beta", [0.5, 0.1, 0.999])
def test_rows_that_share_nothing(device, beta):
    """Where every KL is infinite: the entropy of the mixture's shares, and no gradient."""
    a = torch.tensor([[0.3, 1.0, -INF, -INF, -INF]], device=device, requires_grad=True)
    b = torch.tensor([[-INF, -INF, 0.7, 2.0, -INF]], device=device, requires_grad=True)
    out = jensen_shannon_divergence(a, b, beta=beta)
    expected = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
    assert out.item() == pytest.approx(expected, rel=1e-5)
    for gradient in torch.autograd.grad(out, (a, b)):
        assert gradient.abs().max() < 1e-7


@pytest.mark.parametrize("bad", [math.nan, INF])
@pytest.mark.parametrize("side", [0, 1])
def test_what_is_unknown_is_not_hidden(device, bad, side):
    logits = [x.detach() for x in pair(device, 3, 300, dtype=torch.float32)]
    logits[side][1, 257] = bad
    leaves = [x.requires_grad_() for x in logits]
    out = jensen_shannon_divergence(*leaves, beta=0.3)
    assert out.isnan().tolist() == [False, True, False]
    for gradient in torch.autograd.grad(out.sum(), leaves):
        assert gradient.isnan().any(-1).tolist() == [False, True, False]
    out = jensen_shannon_divergence(*leaves, beta=0.3)
    for gradient in torch.autograd.grad(out, leaves, torch.tensor([1.0, 0.0, 1.0], device=device)):
        assert gradient.isfinite().all()  # a row of no upstream gradient is not read


def test_a_row_without_a_token(device):
    a, b = torch.full((1, 4), -INF, device=device), torch.zeros(1, 4, device=device)
    assert jensen_shannon_divergence(a, b).isnan().all()
    assert jensen_shannon_divergence(b, a).isnan().all()


def test_masked_rows_are_not_read(device):
    a, b = (x.detach() for x in pair(device, 2, 3, 65, dtype=torch.bfloat16))
    a[0, 1], b[1, 2] = math.nan, INF
    mask = torch.tensor([[1, 0, 1], [1, 1, 0]], device=device)
    leaves = [x.requires_grad_() for x in (a, b)]
    out = jensen_shannon_divergence(*leaves, mask=mask)
    assert out.dtype == torch.float32
    assert not out[mask == 0].any()
    assert (out[mask == 1] > 0).all()
    for leaf, gradient in zip(leaves, torch.autograd.grad(out.sum(), leaves), strict=True):
        assert gradient.dtype == leaf.dtype
        assert not gradient[mask == 0].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_small_divergence_keeps_its_digits(device, dtype):
    """Two rows a thousandth apart: eager float32 has no digit of it left; ours has four, and the gradients three."""
    a, b = pair(device, 4, 2053, dtype=torch.float32)
    near = (a.detach() + 1e-3 * b.detach()).to(dtype)
    leaves = [x.detach().to(dtype).requires_grad_() for x in (a, near)]
    exact = [x.detach().double().requires_grad_() for x in leaves]
    out, true = jensen_shannon_divergence(*leaves), formulas.jensen_shannon(*exact, beta=0.5)
    torch.testing.assert_close(out.double(), true, rtol=2e-4, atol=0)
    for x, y in zip(torch.autograd.grad(out.sum(), leaves), torch.autograd.grad(true.sum(), exact), strict=True):
        assert (x.double() - y).norm() < (2e-3 if dtype == torch.float32 else 1e-2) * y.norm()


@pytest.mark.parametrize("beta", [0.0, 0.2, 0.5, 1.0])
def test_gradcheck(backend, device, beta):
    options = {"temperature": torch.tensor([0.7, 1.5], device=device), "mask": torch.tensor([1, 1], device=device)}
    torch.autograd.gradcheck(
        lambda a, b: jensen_shannon_divergence(a, b, beta=beta, **options), pair(device, 2, 9),
        fast_mode=backend == "triton",
    )  # fmt: skip


@pytest.mark.parametrize("side", [0, 1])
def test_one_side_that_is_wanted(device, side):
    a, b = pair(device, 3, 33)
    out = jensen_shannon_divergence(a, b).sum()
    both = torch.autograd.grad(out, (a, b))
    leaves = [x.detach() for x in (a, b)]
    leaves[side].requires_grad_()
    (one,) = torch.autograd.grad(jensen_shannon_divergence(*leaves).sum(), leaves[side])
    assert torch.equal(one, both[side])
    assert not jensen_shannon_divergence(a.detach(), b.detach()).requires_grad


def test_a_second_backward_and_strides(device):
    a, b = pair(device, 3, 4, 21, dtype=torch.float32)
    out = jensen_shannon_divergence(a.transpose(0, 1), b.transpose(0, 1), beta=0.4)
    upstream = torch.tensor(0.5, device=device).expand(4, 3)
    first = torch.autograd.grad(out, (a, b), upstream, retain_graph=True)
    again = torch.autograd.grad(out, (a, b), upstream)
    whole = torch.autograd.grad(jensen_shannon_divergence(a, b, beta=0.4).sum() / 2, (a, b))
    for x, y, z in zip(first, again, whole, strict=True):
        assert torch.equal(x, y)
        torch.testing.assert_close(x, z, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5), (5,), (2, 1, 3, 5)])
def test_any_leading_shape(device, shape):
    a, b = pair(device, *shape)
    out = jensen_shannon_divergence(a, b, beta=0.3)
    assert out.shape == shape[:-1]
    assert [x.shape for x in torch.autograd.grad(out.sum(), (a, b))] == [shape, shape]


@pytest.mark.parametrize("backend", ["native"], indirect=True)
def test_compile_fullgraph(device):
    torch._dynamo.reset()

    def step(a, b):
        return (jensen_shannon_divergence(a * 2, b, beta=0.3, temperature=0.7) ** 2).sum()

    leaves = pair(device, 2, 3, 33)
    expected, actual = step(*leaves), torch.compile(step, fullgraph=True, backend="aot_eager")(*leaves)
    torch.testing.assert_close(actual, expected)
    for x, y in zip(torch.autograd.grad(actual, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("backend", ["native"], indirect=True)
def test_like_trls_distillation(device, beta):
    """`generalized_jsd_loss` of TRL's GKD: the student is a, the teacher b."""
    gkd = pytest.importorskip("trl.experimental.gkd.gkd_trainer", reason="trl is not installed", exc_type=ImportError)
    student, teacher = pair(device, 2, 3, 29, dtype=torch.float32)
    theirs = gkd.GKDTrainer.generalized_jsd_loss(student, teacher, beta=beta, temperature=0.9, reduction="sum")
    ours = jensen_shannon_divergence(student, teacher, beta=beta, temperature=0.9).sum()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for x, y in zip(*(torch.autograd.grad(x, (student, teacher)) for x in (ours, theirs)), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"beta": -0.1}, ValueError, "beta must be between 0 and 1, got -0.1"),
        ({"beta": 1.5}, ValueError, "beta must be between 0 and 1"),
        ({"beta": math.nan}, ValueError, "beta must be between 0 and 1"),
        ({"beta": torch.tensor(0.5)}, TypeError, "beta must be a number, got Tensor"),
        ({"beta": "0.5"}, TypeError, "beta must be a number"),
        ({"temperature": 0.0}, ValueError, "temperature must be finite and > 0"),
        ({"mask": torch.ones(3)}, ValueError, "mask has shape"),
        ({"logits_b": torch.zeros(2, 6)}, ValueError, "must have the same shape"),
        ({"logits_b": torch.zeros(2, 5).bfloat16()}, TypeError, "must have the same dtype"),
        ({"logits_b": torch.zeros(2, 5, device="meta")}, ValueError, "must have the same device"),
        ({"logits_a": [0.0]}, TypeError, "logits must be a tensor"),
    ],
)
def test_bad_input(options, error, words):
    arguments = {"logits_a": torch.zeros(2, 5), "logits_b": torch.zeros(2, 5)} | options
    with pytest.raises(error, match=words):
        jensen_shannon_divergence(**arguments)
