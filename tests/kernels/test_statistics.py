"""logprobs_and_entropy on every backend against float64 truth."""

import pytest
import torch
import truth
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policy_split import logprobs_and_entropy

# 1: a vocabulary of one. 17: below one vector. 2053: a prime just above the CPU's tile of 2048. 5000: several tiles.
SIZES = [1, 17, 128, 2053, 5000]


def check(logits, targets, temperature=1.0, mask=None):
    """Values and gradients of logits (..., V) against the truth on the same, upcast numbers."""
    leaf = logits.detach().requires_grad_()
    logprobs, entropy = logprobs_and_entropy(leaf, targets, temperature=temperature, mask=mask)
    assert logprobs.shape == entropy.shape == targets.shape
    expected_dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    assert logprobs.dtype == entropy.dtype == expected_dtype

    valid = (targets != -100) if mask is None else (targets != -100) & mask.bool()
    exact = logits.detach().double().reshape(-1, logits.shape[-1]).requires_grad_()
    row_temperature = temperature.reshape(-1) if isinstance(temperature, torch.Tensor) else temperature
    true_logprobs, true_entropy = truth.statistics(exact, targets.clamp(min=0).reshape(-1), row_temperature)
    flat = valid.reshape(-1)
    true_logprobs = torch.where(flat, true_logprobs, 0.0)
    true_entropy = torch.where(flat, true_entropy, 0.0)
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if logits.dtype == torch.float64 else {"rtol": 1e-6, "atol": 3e-6}
    torch.testing.assert_close(logprobs.reshape(-1).double(), true_logprobs, **tolerance)
    torch.testing.assert_close(entropy.reshape(-1).double(), true_entropy, **tolerance)

    generator = torch.Generator().manual_seed(1)
    upstream = torch.randn(2, flat.numel(), generator=generator, dtype=torch.float64).to(logits.device)
    (
        (upstream[0].to(logprobs) * logprobs.reshape(-1)) + (upstream[1].to(entropy) * entropy.reshape(-1))
    ).sum().backward()
    (upstream[0] * true_logprobs + upstream[1] * true_entropy).sum().backward()
    truth.assert_gradient_close(leaf.grad.reshape(exact.shape), exact.grad, logits.dtype, terms=upstream.abs().sum(0))


@pytest.mark.parametrize("dtype", truth.DTYPES, ids=str)
@pytest.mark.parametrize("vocabulary", SIZES)
def test_values_and_gradients(device, dtype, vocabulary):
    torch.manual_seed(vocabulary)
    logits = (torch.randn(6, vocabulary) * 4).to(dtype).to(device)
    check(logits, torch.randint(vocabulary, (6,), device=device))


@pytest.mark.parametrize("dtype", truth.DTYPES, ids=str)
def test_temperature_per_row_and_scalar(device, dtype):
    torch.manual_seed(0)
    logits = (torch.randn(2, 3, 333) * 4).to(dtype).to(device)
    targets = torch.randint(333, (2, 3), device=device)
    check(logits, targets, temperature=0.7)
    check(logits, targets, temperature=torch.rand(2, 3, device=device, dtype=torch.float64).add(0.5).to(torch.float32))


@pytest.mark.parametrize("dtype", truth.DTYPES, ids=str)
def test_strided_rows(device, dtype):
    """Shifted logits (B, T - 1, V) of a longer tensor, a sliced vocabulary, transposed leading dimensions."""
    torch.manual_seed(0)
    whole = (torch.randn(3, 5, 150) * 3).to(dtype).to(device)
    targets = torch.randint(120, (3, 5), device=device)
    check(whole[:, :-1], targets[:, 1:])
    check(whole[:, :, 7:127], targets)
    check(whole.transpose(0, 1)[..., :120], targets.t())
    check(whole[:, 0], targets[:, 0])
    check(whole.view(3, 5, 10, 15)[:, :, ::2, ::3], targets[..., None].expand(3, 5, 5) % 5)


def test_mask_and_ignored_targets(device):
    torch.manual_seed(0)
    logits = torch.randn(3, 4, 77, device=device)
    targets = torch.randint(77, (3, 4), device=device)
    targets[0, 1] = -100
    check(logits, targets, mask=torch.rand(3, 4, device=device) > 0.4)
    check(logits, targets, mask=(torch.rand(3, 4, device=device) > 0.4).long())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.integers(0, 3), rows=st.integers(0, 4), vocabulary=st.integers(1, 70), seed=st.integers(0, 2**31),
    pad=st.integers(0, 5), start=st.integers(0, 3), scale=st.sampled_from([0.0, 1.0, 30.0, 1000.0]),
    dtype=st.sampled_from(truth.DTYPES),
)  # fmt: skip
def test_any_shape(device, batch, rows, vocabulary, seed, pad, start, scale, dtype):
    generator = torch.Generator().manual_seed(seed)
    whole = (torch.randn(batch, rows + 2, vocabulary + pad + start, generator=generator) * scale).to(dtype).to(device)
    logits = whole[:, 1 : rows + 1, start : start + vocabulary]
    targets = torch.randint(vocabulary, (batch, rows), generator=generator).to(device)
    mask = (torch.rand(batch, rows, generator=generator) > 0.2).to(device)
    check(logits, targets, mask=mask, temperature=1.0 if scale else 0.5)


def test_one_row_without_leading_dimensions(device):
    check(torch.randn(11, device=device), torch.tensor(3, device=device))


def test_only_one_of_the_outputs_is_used(device):
    logits = torch.randn(4, 9, device=device, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 8, 3, 3], device=device)
    exact = logits.detach().clone().requires_grad_()
    for k in range(2):
        (actual,) = torch.autograd.grad(logprobs_and_entropy(logits, targets)[k].sum(), logits)
        (expected,) = torch.autograd.grad(truth.statistics(exact, targets)[k].sum(), exact)
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)
