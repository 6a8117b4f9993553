"""The mistakes that users of other packages reported, each by a minimal reproduction: wrong numbers.

What went wrong around the numbers (launches, memory, strides, second backward) is in `test_peer_handling`.
Two themes belong to the LM head, whose weight gradient is accumulated over chunks of tokens and whose parameters may be
sharded: a dW or dX kept in bfloat16 while it is summed (Liger #512 #830, apple/ml-cross-entropy #14, fla #874), and a
loss that reads lm_head outside of the wrapped forward (TRL #7245 #3260 #5891). They are tested with it.
"""

import pytest
import torch
import truth
from peer_inputs import assert_true, random_batch, tokens, values_and_gradients

from policy_split import dual_mode_loss, logprobs_and_entropy, mode_divergence

INF = float("inf")


def test_the_gradient_of_the_entropy_arrives(device):
    """TRL #6625, prime-rl: an entropy bonus that was dropped, or an assertion in its way."""
    logits, targets = random_batch(3, 50, device)
    leaf, exact = logits.clone().requires_grad_(), logits.double().requires_grad_()
    zeros = torch.zeros(3, device=device)
    out = dual_mode_loss(leaf, targets, advantages=zeros, mode=targets * 0, weights=zeros + 1, entropy_coef=(0.1, 0.0))
    (gradient,) = torch.autograd.grad(out.loss, leaf)
    (expected,) = torch.autograd.grad(-0.1 * truth.statistics(exact, targets)[1].sum(), exact)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=1e-8)
    assert gradient.any()
    assert logprobs_and_entropy(leaf, targets).entropy.requires_grad


@pytest.mark.parametrize("dropped", [slice(7, 8), slice(0, 2100), slice(40, 3000)], ids=["one", "tile", "most"])
def test_zero_times_minus_infinity(device, dropped):
    """TRL #7221, SkyRL #2259, VeOmni #720: one -inf logit makes the entropy or its gradient NaN."""
    logits, targets = random_batch(2, 3000, device)
    logits[:, dropped] = -INF
    targets[:] = 2999 if dropped.stop < 3000 else 5
    for x in values_and_gradients(logits, targets):
        assert x.isfinite().all()
    kept = logits[0] > -INF
    short = (logits[:, kept], kept.cumsum(0)[targets] - 1)
    for x, y in zip(values_and_gradients(logits, targets), values_and_gradients(*short), strict=True):
        torch.testing.assert_close(x[:, kept] if x.dim() == 2 else x, y, rtol=1e-5, atol=1e-6)
        assert x.dim() == 1 or not x[:, ~kept].any()
    leaf = logits.requires_grad_()
    (gradient,) = torch.autograd.grad(dual_mode_loss(leaf, targets, **tokens(targets)).loss, leaf)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("offset", [-200.0, 200.0, -1e4, 1e4])
def test_very_negative_and_offset_logits(device, offset):
    """verl #7439, SkyRL #2141: a maximum that starts at 0, an entropy of lse - sum(p * z)."""
    logits, targets = random_batch(3, 700, device)
    logits = logits.mul(16).round().div(16)  # exact in float32 under the offset, too
    close = {"rtol": 1e-6 + truth.offset_slack(offset), "atol": 1e-6 + truth.offset_slack(offset)}
    for x, y in zip(values_and_gradients(logits + offset, targets), values_and_gradients(logits, targets), strict=True):
        torch.testing.assert_close(x, y, **close)
    other = mode_divergence(logits + offset, logits - offset)
    for x, y in zip(other, mode_divergence(logits, logits), strict=True):
        torch.testing.assert_close(x, y, **close)


@pytest.mark.parametrize("vocabulary", [3, 65, 129, 1025, 2049, 4097, 4099])
def test_vocabularies_that_no_tile_divides(device, vocabulary):
    """verl #2656 #2899: the reward collapsed. Here nearly all probability lies in the tail that a kernel may lose."""
    for dtype in (torch.float32, torch.bfloat16):
        logits, targets = random_batch(2, vocabulary, device, dtype)
        logits[:, -1] = 25
        targets[0] = vocabulary - 1
        assert_true(logits, targets)
        assert logprobs_and_entropy(logits, targets).logprobs[0] > -0.5


def test_ignored_labels_and_what_overflows_on_masked_rows(device):
    """verl, TRL, unsloth: a padded position has garbage logits and log-probs, and exp(inf) * 0 is NaN."""
    logits, targets = random_batch(5, 40, device)
    garbage = torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0], device=device)
    logits[1], logits[3] = float("nan"), 3e38
    targets[3], mask = -100, torch.tensor([1, 0, 1, 1, 0], device=device)
    old = torch.where(garbage > 0, -1e4, -3.0)  # a ratio of exp(1e4)
    leaf = logits.requires_grad_()
    out = dual_mode_loss(
        leaf, targets, **tokens(targets, old_logprobs=old, ref_logprobs=-old, sampler_logprobs=old * 2, mask=mask),
        kl_coef=(0.1, 0.1),
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(out.loss, leaf)
    counted = garbage == 0
    for x in (out.loss, gradient, out.logprobs, out.entropy, out.kl):
        assert x.isfinite().all()
    for x in (gradient, out.logprobs, out.entropy, out.kl, out.clipped):
        assert not x[~counted].any()
    alone = dual_mode_loss(
        leaf[counted], targets[counted], kl_coef=(0.1, 0.1),
        **{n: x[counted] if isinstance(x, torch.Tensor) else x
           for n, x in tokens(targets, old_logprobs=old, ref_logprobs=-old, sampler_logprobs=old * 2).items()},
    )  # fmt: skip
    torch.testing.assert_close(out.loss, alone.loss)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_temperature_is_not_rounded_to_the_dtype_of_the_logits(device, dtype):
    """verl divides in bfloat16, where 0.7 is 0.69921875 and each quotient is rounded; so did Liger's fallback."""
    logits, targets = random_batch(4, 500, device, dtype)
    assert_true(logits, targets, temperature=0.7)
    per_row = torch.tensor([0.7, 0.9, 1.1, 1.3], device=device)
    assert_true(logits, targets, temperature=per_row)
    rounded = logprobs_and_entropy(logits.div(0.7), targets).entropy
    assert not torch.allclose(logprobs_and_entropy(logits, targets, temperature=0.7).entropy, rounded, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_gradient_of_a_certain_token_does_not_cancel(device, dtype):
    """Liger #1329: p rounded to bfloat16 is 1, and 1 - p nothing."""
    logits = torch.zeros(1, 30, device=device, dtype=dtype)
    logits[0, 3] = 12.0
    target = torch.tensor([3], device=device)
    expected = -torch.expm1(torch.log_softmax(logits.double(), -1)[0, 3]).item()
    leaf = logits.requires_grad_()
    gradient = values_and_gradients(logits, target)[2][0, 3].item()
    assert gradient == pytest.approx(expected, rel=2**-7)
    ones = torch.ones(1, device=device)
    (of_loss,) = torch.autograd.grad(dual_mode_loss(leaf, target, advantages=ones, mode=target * 0).loss, leaf)
    assert of_loss[0, 3].item() == pytest.approx(-expected, rel=2**-7)


def test_a_bfloat16_gradient_is_the_nearest_to_the_true_one(backend, device):
    """quack's inputs, with a weight for each class; where the truth is in the middle, either of its neighbours."""
    generator = torch.Generator().manual_seed(0)
    x = (0.1 * torch.randn(32, 192, generator=generator, dtype=torch.bfloat16)).to(device).requires_grad_()
    targets = torch.randint(192, (32,), generator=generator).to(device)
    upstream = (torch.randn(32, generator=generator) * (torch.rand(192, generator=generator) + 0.1)[:32]).to(device)
    (actual,) = torch.autograd.grad(logprobs_and_entropy(x, targets).logprobs, x, upstream)
    exact = x.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(truth.statistics(exact, targets)[0], exact, upstream.double())
    spacing = 2.0 ** (expected.abs().log2().floor() - 7)
    half = 1.0 if backend == "triton" and device == "cpu" else 0.5  # Triton's interpreter cuts off what a GPU rounds
    assert ((actual.double() - expected).abs() <= (half + 0.0005) * spacing).all()
