"""create_graph=True: gradients that have the right derivative of their own, or an error; never detached ones."""

import formulas
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
    mode_divergence,
)
from policy_split.drop_in import trl, verl

N, V = 5, 7
TARGETS = torch.tensor([1, 3, -100, 2, 6])
VALID = TARGETS != -100
SEVERAL = torch.stack((TARGETS, TARGETS.roll(1)), -1)
GENERATOR = torch.Generator().manual_seed(3)
LOGITS = torch.randn(N, V, dtype=torch.float64, generator=GENERATOR)
LOGITS[1, 2] = LOGITS[4, 0] = -torch.inf
OTHER = torch.where(LOGITS.isinf(), LOGITS, torch.randn(N, V, dtype=torch.float64, generator=GENERATOR))
TEMPERATURE = torch.tensor([0.7, 1.0, 1.5, 2.0, 0.5], dtype=torch.float64)
KEEP = (torch.rand(N, V, generator=GENERATOR) > 0.3).scatter_(1, TARGETS.clamp(min=0)[:, None], True)
OPTIONS = {"temperature": TEMPERATURE, "softcap": 3.0, "keep_mask": KEEP}
OLD = formulas.statistics(LOGITS, TARGETS, valid=VALID, **OPTIONS)[0] + torch.tensor([0.1, -0.5, 0.0, 0.5, -0.1])
TOKENS = {
    "advantages": torch.tensor([1.0, -2.0, 3.0, 0.5, -0.3], dtype=torch.float64),
    "mode": torch.tensor([0, 1, 0, 1, 0]),
    "weights": torch.tensor([0.2, 0.5, 1.0, 0.3, 0.4], dtype=torch.float64),
    "ref_logprobs": OLD + 0.4,
    "entropy_coef": (0.1, 0.3),
    "kl_coef": (0.2, 0.1),
}


def exact_several(logits, temperature):
    log_p = formulas.log_softmax(logits, torch.float64, temperature=temperature)
    return torch.where(SEVERAL >= 0, log_p.gather(-1, SEVERAL.clamp(min=0)), 0.0)


def loss_pair(**policy):
    """Ours and the formula's."""
    return (
        lambda x: dual_mode_loss(x, TARGETS, **TOKENS, **OPTIONS, **policy).loss,
        lambda x: formulas.loss(x, TARGETS, **TOKENS, **OPTIONS, **policy, valid=VALID)[0].sum(),
    )


PAIRS = {
    "statistics": (
        lambda x: torch.stack(logprobs_and_entropy(x, TARGETS, **OPTIONS)),
        lambda x: torch.stack(formulas.statistics(x, TARGETS, valid=VALID, **OPTIONS)),
    ),
    "divergence": (
        lambda x: torch.stack(mode_divergence(x, OTHER, temperature=TEMPERATURE, mask=VALID)),
        lambda x: torch.stack(formulas.divergence(x, OTHER, temperature=TEMPERATURE, valid=VALID)),
    ),
    "divergence of itself": (
        lambda x: torch.stack(mode_divergence(x, 2 * x, mask=VALID)),
        lambda x: torch.stack(formulas.divergence(x, 2 * x, valid=VALID)),
    ),
    "Jensen-Shannon": (
        lambda x: jensen_shannon_divergence(x, OTHER, beta=0.3, temperature=TEMPERATURE, mask=VALID),
        lambda x: formulas.jensen_shannon(x, OTHER, beta=0.3, temperature=TEMPERATURE, valid=VALID),
    ),
    "loss on policy": loss_pair(),
    "loss off policy": loss_pair(old_logprobs=OLD, sampler_logprobs=OLD - 0.2),
    "cispo": loss_pair(old_logprobs=OLD, surrogate="cispo"),
    "SAPO": loss_pair(old_logprobs=OLD, surrogate="sapo"),
    "corrected KL": loss_pair(old_logprobs=OLD, use_bias_correction_kl=True, kl_cap=0.3),
    "corrected KL on policy": loss_pair(use_bias_correction_kl=True),
    "trl, one token": (
        lambda x: trl.selective_log_softmax(x, TARGETS, temperature=0.7),
        lambda x: formulas.statistics(x, TARGETS, valid=VALID, temperature=0.7)[0],
    ),
    "trl, several": (
        lambda x: trl.selective_log_softmax(x, SEVERAL, temperature=0.7),
        lambda x: exact_several(x, 0.7),
    ),
    "verl, in place": (
        lambda x: verl.logprobs_from_logits(x * 1.0, TARGETS),
        lambda x: formulas.statistics(x, TARGETS, valid=VALID)[0],
    ),
}


def gradients(function):
    """By a random upstream that requires grad itself: the gradient, and its own in the logits and in the upstream."""
    leaf = LOGITS.clone().requires_grad_()
    out = function(leaf)
    generator = torch.Generator().manual_seed(5)
    upstream = torch.randn(out.shape, dtype=torch.float64, generator=generator).requires_grad_()
    (first,) = torch.autograd.grad(out, leaf, upstream, create_graph=True)
    direction = torch.randn(first.shape, dtype=torch.float64, generator=generator)
    return [first.detach(), *torch.autograd.grad((first * direction).sum(), (leaf, upstream))]


@pytest.mark.parametrize("name", PAIRS)
@two_backends
def test_the_gradient_has_the_right_gradient(backend, name):
    ours, exact = (gradients(function) for function in PAIRS[name])
    assert exact[1].abs().max() > 0.01
    for x, y in zip(ours, exact, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", [name for name in PAIRS if name != "verl, in place"])
@two_backends
def test_it_is_the_gradient_that_backward_gives(backend, name):
    leaf = LOGITS.clone().requires_grad_()
    out = PAIRS[name][0](leaf)
    upstream = torch.ones_like(out)
    (plain,) = torch.autograd.grad(out, leaf, upstream, retain_graph=True)
    (followed,) = torch.autograd.grad(out, leaf, upstream, create_graph=True)
    torch.testing.assert_close(followed, plain, rtol=1e-12, atol=1e-14)


@two_backends
def test_impossible_tokens(backend):
    """A target that cannot be drawn, on policy; a KL that is infinite: NaN and 0 stand where backward puts them."""
    a = torch.tensor([[0.0, 1.0, 2.0, -torch.inf]], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([[0.0, -torch.inf, 0.5, -torch.inf]], dtype=torch.float64, requires_grad=True)
    on_policy = {"advantages": torch.ones(1), "mode": torch.tensor([1]), "entropy_coef": (0.1, 0.2)}
    results = [*mode_divergence(a, b), dual_mode_loss(a, torch.tensor([3]), **on_policy).loss]
    for result in results:
        leaves = (a, b) if result is not results[-1] else (a,)
        plain = torch.autograd.grad(result, leaves, retain_graph=True)
        followed = torch.autograd.grad(result, leaves, create_graph=True)
        for x, y in zip(followed, plain, strict=True):
            torch.testing.assert_close(x, y, equal_nan=True)
    assert results[0] == torch.inf
    assert plain[0][0, 3] == -1.0  # the target's


@two_backends
def test_distributions_that_are_equal(backend):
    """Where the divergence is 0 and so is its gradient, its curvature is Fisher's information, beta (1 - beta) F."""
    p = torch.softmax(OTHER, -1)
    leaf = OTHER.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(jensen_shannon_divergence(leaf, OTHER, beta=0.3).sum(), leaf, create_graph=True)
    direction = torch.linspace(-1, 2, OTHER.numel(), dtype=torch.float64).view(OTHER.shape)
    (curved,) = torch.autograd.grad((gradient * direction).sum(), leaf)
    assert gradient.abs().max() < 1e-12
    torch.testing.assert_close(curved, 0.3 * 0.7 * p * (direction - (p * direction).sum(-1, keepdim=True)))


def test_one_of_two_matrices(backend):
    a, b = LOGITS.clone().requires_grad_(), OTHER.clone()
    (gradient,) = torch.autograd.grad(mode_divergence(a, b).kl_ba.sum(), a, create_graph=True)
    assert torch.autograd.grad(gradient.square().sum(), a)[0].abs().max() > 0.01


@two_backends
def test_what_the_loss_was_told_must_not_have_changed(backend):
    leaf, advantages = LOGITS.clone().requires_grad_(), TOKENS["advantages"].clone()
    loss = dual_mode_loss(leaf, TARGETS, **TOKENS | {"advantages": advantages}).loss
    advantages.mul_(2)
    torch.autograd.grad(loss, leaf, retain_graph=True)  # whose gradient is formed
    with pytest.raises(RuntimeError, match="per-token argument of the loss was changed"):
        torch.autograd.grad(loss, leaf, create_graph=True)


@two_backends
def test_old_logprobs_of_inference_mode(backend):
    with torch.inference_mode():
        old, advantages = OLD.clone(), TOKENS["advantages"].clone()
    leaf = LOGITS.clone().requires_grad_()
    loss = dual_mode_loss(leaf, TARGETS, **TOKENS | {"old_logprobs": old, "advantages": advantages}).loss
    torch.autograd.grad(loss, leaf)


@two_backends
def test_logits_that_are_written_over(backend):
    leaf = LOGITS.clone().requires_grad_()
    loss = dual_mode_loss(leaf * 1.0, TARGETS, **TOKENS, inplace_gradient=True).loss
    with pytest.raises(RuntimeError, match="create_graph=True needs the logits"):
        torch.autograd.grad(loss, leaf, create_graph=True)


HEADS = {
    "log-probs": lambda h, w: linear_logprobs_and_entropy(h, w, TARGETS).logprobs.sum(),
    "loss": lambda h, w: linear_dual_mode_loss(h, w, TARGETS, **TOKENS).loss,
    "any loss": lambda h, w: linear_token_loss(h, w, TARGETS, lambda lp, ent, _: lp * ent).loss,
}


@pytest.mark.parametrize("name", HEADS)
@two_backends
def test_an_lm_head_says_that_it_has_none(backend, name):
    hidden, weight = torch.randn(N, 3, requires_grad=True), torch.randn(V, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="differentiated once: create_graph=True is not supported"):
        torch.autograd.grad(HEADS[name](hidden, weight), hidden, create_graph=True)
