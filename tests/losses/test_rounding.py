"""A 16-bit gradient on a CPU is rounded once, whatever the loss is multiplied by; that of hidden states everywhere."""

import pytest
import torch

from policy_split import dual_mode_loss, linear_dual_mode_loss, linear_token_loss

SCALES = [3.0, 1 / 3, 1.0, 2.0**16]


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("backend", ["torch", "native"], indirect=True)
def test_a_multiplied_loss(backend, scale, inplace):
    generator = torch.Generator().manual_seed(2)
    logits = (torch.randn(16, 500, generator=generator) * 2).bfloat16()
    targets = torch.randint(500, (16,), generator=generator)
    tokens = {"advantages": torch.randn(16, generator=generator), "mode": targets % 2, "entropy_coef": (0.1, 0.2)}
    gradients = []
    for x in (logits.requires_grad_(), logits.detach().double().requires_grad_()):
        computed = x.clone() if inplace else x
        loss = dual_mode_loss(computed, targets, **tokens, inplace_gradient=inplace).loss * scale
        gradients.append(torch.autograd.grad(loss, x)[0].double())
    actual, exact = gradients
    assert ((actual - exact).abs() <= 2**-8 * exact.abs() + 1e-7 * scale).all()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("function", ["dual_mode", "token_loss"])
def test_of_hidden_states_and_weight(function, masked, scale):
    generator = torch.Generator().manual_seed(4)
    factors = [torch.randn(shape, generator=generator).bfloat16() for shape in ((24, 16), (90, 16))]
    targets = torch.randint(90, (24,), generator=generator)
    tokens = {"advantages": torch.randn(24, generator=generator), "mode": targets % 2, "entropy_coef": (0.1, 0.2)}
    options = {"mask": torch.rand(24, generator=generator) > 0.3 if masked else None, "chunk_bytes": 90 * 4 * 7}
    gradients = []
    for dtype in (torch.bfloat16, torch.float64):
        leaves = [x.to(dtype).requires_grad_() for x in factors]
        if function == "dual_mode":
            loss = linear_dual_mode_loss(*leaves, targets, **tokens, **options).loss
        else:
            loss = linear_token_loss(*leaves, targets, lambda l, e, i: l.exp() - e, **options).loss
        gradients.append([x.double() for x in torch.autograd.grad(loss * scale, leaves)])
    for actual, exact in zip(*gradients, strict=True):
        assert ((actual - exact).abs() <= 2**-8 * exact.abs() + 2e-6 * scale).all()
