"""Numbers at the edge of a dtype that a guard in a kernel is there for; each was found by taking the guard away."""

import pytest
import torch

from policy_split import logprobs_and_entropy, mode_divergence

INF = float("inf")


def gradients(outputs, *leaves):
    return [torch.autograd.grad(x.sum(), leaves, retain_graph=True, allow_unused=True) for x in outputs]


def from_least_to_largest(dtype, device):
    """Two rows whose maximum moves from the first tile's least number to a later tile's largest."""
    logits = torch.full((2, 5000), torch.finfo(dtype).min, dtype=dtype, device=device)
    logits[0, 4999] = logits[1, 2500] = torch.finfo(dtype).max
    return logits.requires_grad_(), torch.tensor([4999, 2500], device=device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_maximum_that_moves_by_more_than_the_largest_number(device, dtype):
    leaf, targets = from_least_to_largest(dtype, device)
    out = logprobs_and_entropy(leaf, targets)
    for x in (*out, *(gradient for (gradient,) in gradients(out, leaf))):
        assert (x == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_same_of_a_pair(device, dtype):
    leaf, _ = from_least_to_largest(dtype, device)
    out = mode_divergence(leaf, torch.zeros_like(leaf))
    assert (out.entropy_a == 0).all()
    torch.testing.assert_close(out.kl_ab, torch.full_like(out.kl_ab, 5000).log())
    for (gradient,) in gradients((out.kl_ab, out.entropy_a), leaf):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_an_enormous_gap_where_the_probability_turns_out_to_be_zero(device, dtype):
    """The first tile's sum of gaps overflows, before a later tile's maximum takes all of its probability away."""
    a, b = torch.zeros(2, 1, 5000, dtype=dtype, device=device)
    a[:, 4999] = 2000.0
    b[:, :1000] = torch.finfo(dtype).min * 0.9
    leaf = a.requires_grad_()
    out = mode_divergence(leaf, b)
    torch.testing.assert_close(out.kl_ab, torch.full_like(out.kl_ab, 4000).log())
    assert gradients((out.kl_ab,), leaf)[0][0].isfinite().all()


@pytest.mark.parametrize("bits", [0x7FC001FF, -1, 0x7F800001], ids=hex)
@pytest.mark.parametrize("side", [0, 1])
def test_a_nan_with_a_payload_is_a_nan_of_the_divergence(device, bits, side):
    """An exponential by bits turns some NaNs into numbers."""
    pair = [torch.zeros(1, 40, device=device) for _ in range(2)]
    pair[side].view(torch.int32)[0, 7] = bits
    leaves = [x.requires_grad_() for x in pair]
    out = mode_divergence(*leaves)
    assert out.kl_ab.isnan().all()
    assert out.kl_ba.isnan().all()
    assert out[2 + side].isnan().all()
    assert out[3 - side].isfinite().all()
    for own in torch.autograd.grad((out.kl_ab + out.kl_ba).sum(), leaves):
        assert own.isnan().any()


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("dropped", ["capped", "kept_out"])
@pytest.mark.parametrize("vocabulary", [5, 2053])
def test_a_target_out_of_reach_is_not_moved(device, vocabulary, dropped, softcap):
    """A softcap has no slope at an infinite logit, and a logit that keep_mask drops is no part of anything."""
    logits = torch.linspace(-3, 3, vocabulary, device=device).repeat(2, 1)
    keep = torch.arange(vocabulary, device=device) != 1 if dropped == "kept_out" else None
    if keep is None:
        logits[:, 1], softcap = -INF, 5.0  # -inf without a softcap has the gradient 1 - p of its definition
    leaf = logits.requires_grad_()
    targets = torch.ones(2, dtype=torch.long, device=device)
    out = logprobs_and_entropy(leaf, targets, softcap=softcap, keep_mask=keep)
    assert (out.logprobs == -INF).all()
    for (gradient,) in gradients(out, leaf):
        assert (gradient[:, 1] == 0).all()
        assert gradient.isfinite().all()
        assert gradient.any()
