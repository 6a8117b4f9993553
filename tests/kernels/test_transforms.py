"""The transforms of torch.func, alone, nested and compiled; what a function cannot have says so."""

import pytest
import torch
from columns import two_backends

from policy_split import (
    dual_mode_loss,
    jensen_shannon_divergence,
    linear_dual_mode_loss,
    linear_logprobs_and_entropy,
    linear_token_loss,
    logprobs_and_entropy,
    logprobs_entropy_lse,
    mode_divergence,
)
from policy_split.drop_in import trl, verl

B, N, V = 3, 4, 6
GENERATOR = torch.Generator().manual_seed(1)
LOGITS = torch.randn(B, N, V, dtype=torch.float64, generator=GENERATOR)
TARGETS = torch.tensor([[1, 5, -100, 0], [0, 2, 3, 4], [5, 5, 1, -100]])
TOKENS = {"mode": torch.tensor([0, 1, 1, 0]), "entropy_coef": (0.1, 0.2), "temperature": 0.8}
ADVANTAGES = torch.randn(B, N, dtype=torch.float64, generator=GENERATOR)


def loss(x, t, a):
    return dual_mode_loss(x, t, advantages=a, old_logprobs=a - 2, **TOKENS).loss


def sequence_loss(x, t, a):
    tokens = {"advantages": a[None], "old_logprobs": a[None] - 2, "mode": t[None] % 2}
    policy = {"ratio_level": "sequence", "reduction": "none", "clip_high": 4.0}
    return dual_mode_loss(x[None], t[None], **tokens, **policy).loss


FUNCTIONS = {
    "statistics": lambda x, t, a: torch.stack(logprobs_and_entropy(x, t, temperature=0.8)),
    "log-sum-exp": lambda x, t, a: logprobs_entropy_lse(x, t, temperature=0.8).lse,
    "divergence": lambda x, t, a: torch.stack(mode_divergence(x, x * a[:, None])),
    "Jensen-Shannon": lambda x, t, a: jensen_shannon_divergence(x, x * a[:, None], beta=0.7),
    "loss": loss,
    "sequence": sequence_loss,
    "trl": lambda x, t, a: trl.selective_log_softmax(x, torch.stack((t, t), -1)),
    "verl": lambda x, t, a: verl.logprobs_from_logits(x * 1.0, t),
}
every_function = pytest.mark.parametrize("name", FUNCTIONS)


@every_function
@two_backends
def test_vmap(backend, name):
    function = FUNCTIONS[name]
    each = torch.stack([function(*x) for x in zip(LOGITS, TARGETS, ADVANTAGES, strict=True)])
    torch.testing.assert_close(torch.func.vmap(function)(LOGITS, TARGETS, ADVANTAGES), each)
    torch.testing.assert_close(
        torch.func.vmap(function, in_dims=(1, 1, None))(LOGITS.movedim(0, 1), TARGETS.T, ADVANTAGES[0]),
        torch.stack([function(x, t, ADVANTAGES[0]) for x, t in zip(LOGITS, TARGETS, strict=True)]),
    )


@pytest.mark.parametrize("size", [B, N])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_a_batch_beside_one_that_is_not(side, beta, size):
    """One teacher for many students: and a batch of as many as there are rows is taken for neither."""
    batch = torch.randn(size, N, V, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    other = LOGITS[0]
    batch[:, 1, 2] = -torch.inf if beta == 0.5 else 0.0

    def function(x):
        pair = (x, other) if side == 0 else (other, x)
        return jensen_shannon_divergence(*pair, beta=beta)

    total = lambda x: function(x).sin().sum()  # noqa: E731
    torch.testing.assert_close(torch.func.vmap(function)(batch), torch.stack([function(x) for x in batch]))
    leaves = [x.clone().requires_grad_() for x in batch]
    expected = torch.stack([torch.autograd.grad(total(x), x)[0] for x in leaves])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(total))(batch), expected)


@every_function
@two_backends
def test_gradients_of_each_sample(backend, name):
    """Per-sample gradients: vmap over grad; and the other way round, the gradient of what was batched."""

    def total(*x):
        return FUNCTIONS[name](*x).sin().sum()

    expected = []
    for x, *rest in zip(LOGITS, TARGETS, ADVANTAGES, strict=True):
        leaf = x.clone().requires_grad_()
        expected += torch.autograd.grad(total(leaf, *rest), leaf)
    expected = torch.stack(expected)
    arguments = (LOGITS, TARGETS, ADVANTAGES)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(total))(*arguments), expected)
    torch.testing.assert_close(torch.func.grad(lambda *x: torch.func.vmap(total)(*x).sum())(*arguments), expected)


@every_function
@two_backends
def test_hessians(backend, name):
    """Forward over reverse mode, reverse over forward, and against differences of the gradient."""
    rest = (TARGETS[0], ADVANTAGES[0])
    total = lambda x: FUNCTIONS[name](x, *rest).sin().sum()  # noqa: E731
    hessian = torch.func.hessian(total)(LOGITS[0])
    torch.testing.assert_close(torch.func.jacrev(torch.func.jacfwd(total))(LOGITS[0]), hessian)
    direction, step = ADVANTAGES[1][:, None] * LOGITS[1], 1e-6
    ends = [LOGITS[0] + sign * step * direction for sign in (1, -1)]
    differences = [torch.autograd.grad(total(x), x)[0] for x in map(torch.Tensor.requires_grad_, ends)]
    expected = (differences[0] - differences[1]) / (2 * step)
    assert expected.abs().max() > 0.01
    torch.testing.assert_close((hessian * direction).sum((-1, -2)), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("backend", ["native"], indirect=True)
@pytest.mark.parametrize("transform", ["grad", "jvp", "vmap"])
def test_compiled(backend, transform):
    torch._dynamo.reset()

    def run(x):
        function = lambda x: loss(x, TARGETS[1], ADVANTAGES[1]) + mode_divergence(x, 2 * x).kl_ab.sum()  # noqa: E731
        if transform == "jvp":
            return torch.func.jvp(function, (x[0].clone(),), (x[1].clone(),))[1]
        return torch.func.vmap(function)(x) if transform == "vmap" else torch.func.grad(function)(x[0])

    expected = run(LOGITS)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(torch.compile(run, fullgraph=True, backend="aot_eager")(LOGITS), expected)


@two_backends
def test_values_are_checked_where_they_can_be_seen(backend):
    """A target that is no token: an error where vmap does not hide it, and else NaN."""
    wrong = torch.tensor([1, 99, 0, 0])
    with pytest.raises(IndexError, match=r"targets\[1\] = 99"):
        torch.func.grad(lambda x: loss(x, wrong, ADVANTAGES[0]))(LOGITS[0])
    tokens = TOKENS | {"mode": torch.tensor([0, 1, 7, 0])}
    with pytest.raises(ValueError, match="mode holds 7"):
        torch.func.vmap(lambda x: dual_mode_loss(x, TARGETS[0], advantages=ADVANTAGES[0], **tokens).loss)(LOGITS)
    out = torch.func.vmap(lambda x, t: logprobs_and_entropy(x, t).logprobs)(LOGITS, wrong.expand(B, N))
    assert torch.equal(out.isnan(), torch.tensor([[False, True, False, False]]).expand(B, N))


HIDDEN, WEIGHT = torch.randn(N, 3), torch.randn(V, 3)
HEADS = {
    "log-probs": lambda h: linear_logprobs_and_entropy(h, WEIGHT, TARGETS[0]).logprobs.sum(),
    "loss": lambda h: linear_dual_mode_loss(h, WEIGHT, TARGETS[0], advantages=ADVANTAGES[0], mode=TOKENS["mode"]).loss,
    "any loss": lambda h: linear_token_loss(h, WEIGHT, TARGETS[0], lambda lp, ent, _: lp).loss,
}
TRANSFORMS = {
    "grad": lambda f: torch.func.grad(f)(HIDDEN),
    "jvp": lambda f: torch.func.jvp(f, (HIDDEN,), (HIDDEN,)),
    "vmap": lambda f: torch.func.vmap(f)(HIDDEN[None]),
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("transform", TRANSFORMS)
@two_backends
def test_an_lm_head_says_how_to_go_on(backend, name, transform):
    with pytest.raises(NotImplementedError, match=r"backward alone.*logits = torch.nn.functional.linear"):
        TRANSFORMS[transform](HEADS[name])


@pytest.mark.parametrize("transform", TRANSFORMS)
@two_backends
def test_a_gradient_in_place_says_so(backend, transform):
    def function(h):
        tokens = {"advantages": ADVANTAGES[0], "mode": TOKENS["mode"]}
        return dual_mode_loss(h @ WEIGHT.T, TARGETS[0], **tokens, inplace_gradient=True).loss

    with pytest.raises(NotImplementedError, match="inplace_gradient=True"):
        TRANSFORMS[transform](function)
