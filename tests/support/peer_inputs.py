"""Small inputs for the tests of the peers' mistakes, and the comparison with the truth."""

import torch
import truth

from policy_split import logprobs_and_entropy


def random_batch(rows, vocabulary, device, dtype=torch.float32, scale=3.0):
    generator = torch.Generator().manual_seed(vocabulary)
    logits = (torch.randn(rows, vocabulary, generator=generator) * scale).to(dtype).to(device)
    return logits, torch.randint(vocabulary, (rows,), generator=generator).to(device)


def tokens(targets, **others):
    """What the loss wants of every token; alternating signs and modes."""
    ones = torch.ones(targets.shape, device=targets.device)
    mode = torch.arange(targets.numel(), device=targets.device).view(targets.shape) % 2
    return {"advantages": ones - 1.5 * mode, "mode": mode, "entropy_coef": (0.0, 0.1), **others}


def values_and_gradients(logits, targets, **options):
    """logprobs, entropy and the gradient of the sum of each."""
    leaf = logits.detach().requires_grad_()
    out = logprobs_and_entropy(leaf, targets, **options)
    gradients = [torch.autograd.grad(x.sum(), leaf, retain_graph=True)[0] for x in out]
    return [x.detach() for x in (*out, *gradients)]


def assert_true(logits, targets, temperature=1.0):
    """Values to float32's rounding, gradients to that of their dtype."""
    exact = logits.detach().double().requires_grad_()
    out = truth.statistics(exact, targets, temperature)
    actual = values_and_gradients(logits, targets, temperature=temperature)
    for x, y in zip(actual[:2], out, strict=True):
        torch.testing.assert_close(x.double(), y.detach(), rtol=1e-6, atol=3e-6)
    for x, y in zip(actual[2:], out, strict=True):
        (gradient,) = torch.autograd.grad(y.sum(), exact, retain_graph=True)
        truth.assert_gradient_close(x, gradient, logits.dtype, terms=torch.full_like(targets, 3.0, dtype=torch.float64))
