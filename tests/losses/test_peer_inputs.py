"""Inputs of the tests of prime-rl, SkyRL, slime and fla, which no package holds: what they ask, of our functions.

Written anew; where theirs compare with float32 or bfloat16, these compare with float64. Read in their repositories on
2026-11-29: prime-rl tests/unit/train/rl/test_loss.py, SkyRL tests/backends/skyrl_train/utils/test_torch_utils.py and
test_ppo_utils.py, slime tests/test_cispo_custom_loss.py, fla tests/modules/test_cross_entropy.py.
"""

import math

import pytest
import torch
import truth

from policy_split import dual_mode_loss, linear_logprobs_and_entropy, logprobs_and_entropy

UNIFORM, RISING, ONE = [0.0] * 4, [1.0, 2.0, 3.0, 4.0], [1.0, 0.0, 0.0, 0.0]


def close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(
        actual.double().cpu(), torch.as_tensor(expected).double(), rtol=tolerance, atol=tolerance
    )


def on_policy(logits, targets, **options):
    ones = torch.ones(targets.shape, device=targets.device)
    return dual_mode_loss(logits, targets, **{"advantages": ones, "mode": torch.zeros_like(targets)} | options)


def test_skyrl_entropy_of_known_rows(device):
    logits = torch.tensor([[RISING, ONE, UNIFORM], [UNIFORM, RISING, RISING[::-1]]], device=device)
    entropy = logprobs_and_entropy(logits, torch.zeros(2, 3, dtype=torch.long, device=device)).entropy
    close(entropy[[0, 1], [2, 0]], [math.log(4)] * 2)
    exact = logits.double().cpu().log_softmax(-1)
    close(entropy, -(exact.exp() * exact).sum(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.int64])
def test_skyrl_entropy_under_an_attention_mask(device, dtype):
    logits = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0)).to(device)
    targets = torch.zeros(2, 4, dtype=torch.long, device=device)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]], device=device).to(dtype)
    plain, masked = (logprobs_and_entropy(logits, targets, mask=m).entropy for m in (None, mask))
    assert masked[1, 2:].tolist() == [0.0, 0.0]
    assert torch.equal(masked[mask != 0], plain[mask != 0])
    for wrong in (torch.ones(3, 4), torch.ones(2, 5)):
        with pytest.raises(ValueError, match="mask has shape"):
            logprobs_and_entropy(logits, targets, mask=wrong.to(device))


def test_skyrl_temperature_of_bfloat16_logits(device):
    """Divided in float32, where dividing in bfloat16 would round."""
    logits = torch.tensor([[2.0, 4.0]], dtype=torch.bfloat16, device=device)
    out = logprobs_and_entropy(logits, torch.tensor([0], device=device), temperature=2.0)
    close(out.logprobs, torch.tensor([1.0, 2.0]).log_softmax(-1)[:1])


def test_skyrl_kl_where_a_masked_reference_is_nan(device):
    logits = torch.randn(4, 7, generator=torch.Generator().manual_seed(1)).to(device)
    targets, mask = torch.tensor([1, 5, 0, 3], device=device), torch.tensor([1, 1, 1, 0], device=device)
    with torch.no_grad():
        logprobs = logprobs_and_entropy(logits, targets).logprobs
    difference = torch.tensor([0.1, 0.1, 0.1, math.nan], device=device)
    leaf = logits.clone().requires_grad_()
    options = {"ref_logprobs": logprobs - difference, "mask": mask, "kl_coef": (1.0, 1.0)}
    out = on_policy(leaf, targets, **options, advantages=torch.zeros(4, device=device), reduction="none")
    close(out.loss.detach(), [math.exp(-0.1) - 1 + 0.1] * 3 + [0.0])
    out.loss.sum().backward()
    assert torch.isfinite(leaf.grad).all()
    assert not leaf.grad[3].any()


def test_prime_rl_entropy_of_a_cube(device):
    logits = torch.randn(10, 10, 10, generator=torch.Generator().manual_seed(2)).to(device)
    entropy = logprobs_and_entropy(logits, torch.zeros(10, 10, dtype=torch.long, device=device)).entropy
    assert entropy.shape == (10, 10)
    close(entropy, truth.statistics(logits.double().cpu(), torch.zeros(10, 10, dtype=torch.long))[1])


def test_prime_rl_a_mask_that_leaves_nothing_keeps_the_backward(device):
    leaf = torch.randn(6, 5, generator=torch.Generator().manual_seed(3)).to(device).requires_grad_()
    nothing = torch.zeros(6, dtype=torch.bool, device=device)
    loss = on_policy(leaf, torch.zeros(6, dtype=torch.long, device=device), mask=nothing).loss
    assert loss.item() == 0
    loss.backward()
    assert torch.equal(leaf.grad, torch.zeros_like(leaf))


def test_prime_rl_two_losses_of_one_batch_add_up(device):
    """Cross entropy is the loss whose advantages are its weights, beside a policy loss of the same tokens."""
    generator = torch.Generator().manual_seed(4)
    logits, advantages = (torch.randn(*s, generator=generator).to(device) for s in ((8, 11), (8,)))
    targets = torch.randint(11, (8,), generator=generator).to(device)
    half = torch.full((8,), 0.5, device=device)

    def gradient(of):
        leaf = logits.clone().requires_grad_()
        losses = [on_policy(leaf, targets, advantages=a).loss for a in of]
        return torch.stack(losses).detach().sum(), torch.autograd.grad(sum(losses), leaf)[0]

    (both, of_both), (one, of_one), (other, of_other) = map(gradient, ((advantages, half), (advantages,), (half,)))
    close(both, (one + other).cpu())
    close(of_both, (of_one + of_other).cpu())
    close(gradient((advantages + half,))[1], of_both.cpu())


def test_prime_rl_cross_entropy_weighs_by_its_advantages(device):
    """Log-probs -0.1, -0.5, -0.2, weights 0.1, none, 0.1: 0.03, by the surrogate that has the log-prob in it."""
    wanted = torch.tensor([-0.1, -0.5, -0.2], dtype=torch.float64)
    logits = torch.stack([wanted, torch.log1p(-wanted.exp())], -1).float().to(device)
    weights, mask = torch.tensor([0.1, 0.0, 0.1], device=device), torch.tensor([True, False, True], device=device)
    options = {"advantages": weights, "mask": mask, "weights": torch.ones(3, device=device), "surrogate": "cispo"}
    loss = on_policy(logits, torch.zeros(3, dtype=torch.long, device=device), **options).loss
    close(loss, 0.03)


def test_slime_cispo_by_its_formula(device):
    """Ratios of 1, e and 1 with a cap of 1.5 above and 0 below; the middle advantage is negative."""
    logprobs = torch.tensor([-0.5, -0.25, -1.0], dtype=torch.float64)
    logits = torch.stack([logprobs, torch.log1p(-logprobs.exp())], -1).float().to(device)
    old = (logprobs - torch.tensor([0.0, 1.0, 0.0])).float().to(device)
    advantages = torch.tensor([1.0, -2.0, 0.25])
    targets, leaf = torch.zeros(3, dtype=torch.long, device=device), logits.clone().requires_grad_()
    options = {"surrogate": "cispo", "clip_low": 1.0, "clip_high": 0.5, "reduction": "none"}
    out = on_policy(leaf, targets, advantages=advantages.to(device), old_logprobs=old, **options)
    capped = torch.tensor([1.0, math.e, 1.0]).clamp(max=1.5)
    close(out.loss.detach(), -capped * advantages * logprobs)
    out.loss.sum().backward()
    p = logprobs.exp()
    close(leaf.grad[:, 0], -capped * advantages * (1 - p))


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_fla_cross_entropy_of_shifted_labels(device, scale):
    """Labels shifted by one, the last ignored; bfloat16; logits scaled, here by 1 / temperature."""
    generator = torch.Generator().manual_seed(42)
    batch, length, width, vocabulary = 2, 16, 24, 1000
    hidden, weight = (
        torch.randn(*shape, generator=generator).bfloat16().to(device)
        for shape in ((batch, length, width), (vocabulary, width))
    )
    targets = torch.randint(vocabulary, (batch, length), generator=generator)
    targets = torch.cat((targets[:, 1:], torch.full_like(targets[:, :1], -100)), -1).to(device)
    leaves = [x.clone().requires_grad_() for x in (hidden, weight)]
    logprobs = linear_logprobs_and_entropy(*leaves, targets, temperature=1 / scale).logprobs
    count = (targets != -100).sum()
    (-logprobs.sum() / count).backward()
    exact = [x.double().cpu().requires_grad_() for x in (hidden, weight)]
    logits = scale * exact[0] @ exact[1].mT
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten().cpu(), ignore_index=-100)
    expected.backward()
    assert not logprobs[:, -1].any()
    close(-logprobs.detach().sum() / count, expected.detach(), 1e-2)
    for leaf, truth_of in zip(leaves, exact, strict=True):
        error = (leaf.grad.double().cpu() - truth_of.grad).square().mean().sqrt()
        assert error < 1e-2 * truth_of.grad.square().mean().sqrt()
