"""Results are the caller's own: written over in place where the originals allow it, and gradients stay right."""

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

WEIGHT = torch.linspace(-1, 2, 28).view(7, 4).sin()
TARGETS = {1: torch.tensor([1, 0, 6]), 2: torch.tensor([[1, -100, 3], [0, 6, 2]])}


def tokens(targets):
    numbers = torch.linspace(-1, 1, targets.numel()).view(targets.shape)
    return {"advantages": numbers, "mode": targets % 2, "ref_logprobs": numbers - 2, "kl_coef": (0.1, 0.2),
            "entropy_coef": (0.1, 0.3)}  # fmt: skip


DIFFERENTIABLE = {
    "statistics": lambda h, t: logprobs_and_entropy(h @ WEIGHT.T, t),
    "divergence": lambda h, t: mode_divergence(h @ WEIGHT.T, h @ WEIGHT.flip(0).T),
    "Jensen-Shannon": lambda h, t: (jensen_shannon_divergence(h @ WEIGHT.T, h @ WEIGHT.flip(0).T, beta=0.3),),
    "LM head": lambda h, t: linear_logprobs_and_entropy(h, WEIGHT, t),
    "trl, both": lambda h, t: trl.selective_log_softmax_and_entropy(h @ WEIGHT.T, t),
    "trl, one": lambda h, t: (trl.selective_log_softmax(h @ WEIGHT.T, t),),
    "trl, several": lambda h, t: (trl.selective_log_softmax(h @ WEIGHT.T, torch.stack((t, t), -1)),),
    "trl, entropy": lambda h, t: (trl.entropy_from_logits(h @ WEIGHT.T),),
    "verl, in place": lambda h, t: (verl.logprobs_from_logits(h @ WEIGHT.T, t),),
    "verl": lambda h, t: (verl.logprobs_from_logits(h @ WEIGHT.T, t, inplace_backward=False),),
    "verl, entropy": lambda h, t: (verl.entropy_from_logits(h @ WEIGHT.T),),
}
LOSSES = {
    "loss": lambda h, t: dual_mode_loss(h @ WEIGHT.T, t, **tokens(t)),
    "loss in float16": lambda h, t: dual_mode_loss((h @ WEIGHT.T).half(), t, **tokens(t)),
    "loss in bfloat16": lambda h, t: dual_mode_loss((h @ WEIGHT.T).bfloat16(), t, **tokens(t)),
    "loss in place": lambda h, t: dual_mode_loss(h @ WEIGHT.T, t, **tokens(t), inplace_gradient=True),
    "CISPO": lambda h, t: dual_mode_loss(h @ WEIGHT.T, t, **tokens(t), surrogate="cispo"),
    "sequence": lambda h, t: dual_mode_loss(
        h @ WEIGHT.T, t, **tokens(t), ratio_level="token" if t.dim() == 1 else "sequence"
    ),
    "SAPO": lambda h, t: dual_mode_loss(h @ WEIGHT.T, t, **tokens(t), surrogate="sapo"),
    "not reduced": lambda h, t: not_reduced(h @ WEIGHT.T, t),
    "LM head": lambda h, t: linear_dual_mode_loss(h, WEIGHT, t, **tokens(t)),
    "LM head in float16": lambda h, t: linear_dual_mode_loss(h.half(), WEIGHT.half(), t, **tokens(t)),
    "any loss": lambda h, t: linear_token_loss(h, WEIGHT, t, lambda lp, ent, _: lp.square() + ent),
}


def not_reduced(logits, targets):
    loss, *others = dual_mode_loss(logits, targets, **tokens(targets), reduction="none")
    kept = loss.sum()
    loss.mul_(5)
    return kept, loss.detach(), *others


def hidden(dim):
    size = (*TARGETS[dim].shape, 4)
    return torch.linspace(-2, 1, TARGETS[dim].numel() * 4).view(size).cos().requires_grad_()


@pytest.mark.parametrize("dim", TARGETS)
@pytest.mark.parametrize("name", DIFFERENTIABLE)
@two_backends
def test_results_that_have_a_gradient(backend, name, dim):
    """Doubled in place, and then a constant taken off: the gradient is doubled."""
    outputs = DIFFERENTIABLE[name](x := hidden(dim), TARGETS[dim])
    upstream = [torch.linspace(-1, 2, y.numel()).view(y.shape) for y in outputs]
    expected = torch.autograd.grad(outputs, x, upstream)
    outputs = DIFFERENTIABLE[name](x, TARGETS[dim])
    for y in outputs:
        y.mul_(2).sub_(1)
    (actual,) = torch.autograd.grad(outputs, x, upstream)
    torch.testing.assert_close(actual, 2 * expected[0])


@pytest.mark.parametrize("dim", TARGETS)
@pytest.mark.parametrize("name", LOSSES)
@two_backends
def test_results_of_a_loss_that_have_none(backend, name, dim):
    """What a log took and changed is not what backward reads, in a first and in a second one."""
    gradients = []
    for change in (False, True):
        loss, *others = LOSSES[name](x := hidden(dim), TARGETS[dim])
        for y in others:
            if change:
                y.fill_(7)
        gradients.append(torch.autograd.grad(loss * 3, x, retain_graph=name != "loss in place"))
        if name != "loss in place":
            gradients[-1] += torch.autograd.grad(loss * 0.5, x)
    for x, y in zip(*gradients, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
@two_backends
def test_results_share_no_memory(backend, name):
    """With each other or with what went in."""
    x = hidden(2)
    outputs = DIFFERENTIABLE[name](x, TARGETS[2])
    places = [y.untyped_storage().data_ptr() for y in (*outputs, x, WEIGHT, TARGETS[2])]
    assert len(set(places)) == len(places)
