"""A 16-bit gradient on a CPU is rounded once, whatever the loss is multiplied by."""

import pytest
import torch

from policy_split import dual_mode_loss

SCALES = [3.0, 1 / 3, 1.0, 2.0**16]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("backend", ["torch", "native"], indirect=True)
def test_a_multiplied_loss(backend, scale):
    generator = torch.Generator().manual_seed(2)
    logits = (torch.randn(16, 500, generator=generator) * 2).bfloat16()
    targets = torch.randint(500, (16,), generator=generator)
    tokens = {"advantages": torch.randn(16, generator=generator), "mode": targets % 2, "entropy_coef": (0.1, 0.2)}
    gradients = []
    for x in (logits.requires_grad_(), logits.detach().double().requires_grad_()):
        loss = dual_mode_loss(x, targets, **tokens).loss * scale
        gradients.append(torch.autograd.grad(loss, x)[0].double())
    actual, exact = gradients
    assert ((actual - exact).abs() <= 2**-8 * exact.abs() + 1e-7 * scale).all()
