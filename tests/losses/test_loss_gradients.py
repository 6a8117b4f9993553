"""dual_mode_loss: values and gradients against float64, loss scales, several backwards, gradients over the logits."""

import pytest
import torch
import truth
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policy_split import DualModeLoss, dual_mode_loss


def random_case(seed, shape, vocabulary, dtype, device, *, old, ref, scale=3.0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64).to(device)

    logits = (normal(*shape, vocabulary) * scale).to(dtype)
    targets = torch.randint(vocabulary, shape, generator=generator).to(device)
    exact, _ = truth.statistics(logits.double().reshape(-1, vocabulary), targets.reshape(-1))
    tokens = {
        "advantages": normal(*shape),
        "mode": torch.randint(3, shape, generator=generator).to(device),
        "weights": normal(*shape).abs() / max(1, targets.numel()),
        "old_logprobs": exact.view(shape) + normal(*shape) * 0.4 if old else None,
        "ref_logprobs": exact.view(shape) + normal(*shape) * 0.4 if ref else None,
    }
    float32 = torch.float64 if dtype == torch.float64 else torch.float32
    for name in ("advantages", "weights", "old_logprobs", "ref_logprobs"):
        if tokens[name] is not None:
            tokens[name] = tokens[name].to(float32)
    return logits, targets, tokens


def check(logits, targets, tokens, upstream=1.0, inplace=False, **scalars):
    leaf = logits.detach().requires_grad_()
    out = dual_mode_loss(leaf * 1.0 if inplace else leaf, targets, **tokens, **scalars, inplace_gradient=inplace)
    (gradient,) = torch.autograd.grad(out.loss * upstream, leaf)
    flat = {name: x if x is None else x.reshape(-1) for name, x in tokens.items()}
    flat = {n: x.double() if x is not None and x.is_floating_point() else x for n, x in flat.items()}
    exact = logits.detach().double().reshape(-1, logits.shape[-1]).requires_grad_()
    expected = truth.loss(exact, targets.reshape(-1), **flat, **scalars)
    (true_gradient,) = torch.autograd.grad(expected * upstream, exact)
    tolerance = 1e-11 if logits.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(out.loss.double(), expected, rtol=tolerance, atol=tolerance)
    terms = flat["weights"] * (3 * flat["advantages"].abs() + 3) * abs(upstream)
    truth.assert_gradient_close(gradient.reshape(exact.shape), true_gradient, logits.dtype, terms=terms)


COEFFICIENTS = {"entropy_coef": (0.0, 0.01, -0.2), "kl_coef": (0.0, 0.05, 0.3)}


@pytest.mark.parametrize("dtype", truth.DTYPES, ids=str)
@pytest.mark.parametrize("old", [False, True], ids=["on_policy", "old"])
@pytest.mark.parametrize("ref", [False, True], ids=["no_ref", "ref"])
@pytest.mark.parametrize("inplace", [False, True], ids=["fresh", "inplace"])
def test_values_and_gradients(device, dtype, old, ref, inplace):
    logits, targets, tokens = random_case(0, (2, 4), 2053, dtype, device, old=old, ref=ref)
    check(logits, targets, tokens, upstream=0.5, inplace=inplace, **COEFFICIENTS, temperature=0.8, clip_delta=2.0)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.lists(st.integers(0, 4), max_size=3).map(tuple), vocabulary=st.integers(1, 60), seed=st.integers(0, 2**31),
    dtype=st.sampled_from(truth.DTYPES), old=st.booleans(), ref=st.booleans(), inplace=st.booleans(),
    low=st.floats(0, 1), high=st.floats(0, 2), delta=st.none() | st.floats(3.1, 10),
    temperature=st.floats(0.3, 3), upstream=st.sampled_from([1.0, 0.25, -2.0, 0.0]),
)  # fmt: skip
def test_any_shape_and_setting(
    device, shape, vocabulary, seed, dtype, old, ref, inplace, low, high, delta, temperature, upstream
):
    logits, targets, tokens = random_case(seed, shape, vocabulary, dtype, device, old=old, ref=ref, scale=1.0)
    check(
        logits, targets, tokens, upstream=upstream, inplace=inplace, **COEFFICIENTS,
        temperature=temperature, clip_low=low, clip_high=high, clip_delta=delta,
    )  # fmt: skip


def test_float16_gradients_survive_a_loss_scale(device):
    """1e-7 is below float16's range of exact numbers until the scale of 2**14 has been applied."""
    logits = torch.zeros(1, 3, 8, dtype=torch.float16, device=device, requires_grad=True)
    targets = torch.zeros(1, 3, dtype=torch.long, device=device)
    ones = torch.ones(1, 3, device=device)
    for inplace in (False, True):
        out = dual_mode_loss(
            logits * 1, targets, advantages=ones, weights=ones * 1e-7, mode=targets, inplace_gradient=inplace
        )
        (gradient,) = torch.autograd.grad(out.loss * 2**14, logits)
        assert gradient[0, 0, 0].item() == pytest.approx(-1e-7 * 7 / 8 * 2**14, rel=2e-3)
        assert gradient[0, 0, 1].item() == pytest.approx(1e-7 / 8 * 2**14, rel=2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_going_backward_twice(device, dtype):
    logits, targets, tokens = random_case(3, (5,), 40, dtype, device, old=True, ref=False)
    leaf = logits.requires_grad_()
    out = dual_mode_loss(leaf, targets, **tokens, **COEFFICIENTS)
    (once,) = torch.autograd.grad(out.loss * 3, leaf, retain_graph=True)
    kept = once.clone()
    (again,) = torch.autograd.grad(out.loss * 3, leaf, retain_graph=True)
    (half,) = torch.autograd.grad(out.loss * 1.5, leaf)
    assert torch.equal(once, kept)  # what was handed out is not written again
    torch.testing.assert_close(again, once, rtol=2e-3 if dtype == torch.float16 else 1e-6, atol=1e-7)
    torch.testing.assert_close(half * 2, once, rtol=2e-3 if dtype == torch.float16 else 1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_inplace_gradient_reuses_the_logits_and_is_good_for_one_backward(device, dtype):
    logits, targets, tokens = random_case(3, (5,), 40, dtype, device, old=True, ref=False)
    leaf = logits.requires_grad_()
    computed = leaf * 1.0
    out = dual_mode_loss(computed, targets, **tokens, **COEFFICIENTS, inplace_gradient=True)
    received = []
    computed.register_hook(lambda grad: received.append(grad.data_ptr()))
    torch.autograd.grad(out.loss, leaf, retain_graph=True)
    assert received == [computed.data_ptr()]
    with pytest.raises(RuntimeError, match="second backward through a loss with inplace_gradient=True"):
        torch.autograd.grad(out.loss, leaf)


def test_inplace_gradient_of_a_view(device):
    """Shifted logits, as a causal language model gives them: the last position gets no gradient."""
    logits, targets, tokens = random_case(3, (2, 4), 40, torch.float32, device, old=True, ref=False)
    leaf = torch.cat((logits, logits[:, :1]), 1).requires_grad_()
    gradients = []
    for inplace in (False, True):
        out = dual_mode_loss((leaf * 1.0)[:, :-1], targets, **tokens, **COEFFICIENTS, inplace_gradient=inplace)
        gradients += torch.autograd.grad(out.loss, leaf)
    assert torch.equal(*gradients)
    assert gradients[0][:, :-1].any()
    assert not gradients[0][:, -1].any()


def test_inplace_gradient_is_refused_where_it_would_destroy_something(device):
    targets = torch.zeros(2, dtype=torch.long, device=device)
    tokens = {"advantages": torch.ones(2, device=device), "mode": targets, "inplace_gradient": True}
    with pytest.raises(ValueError, match="leaf"):
        dual_mode_loss(torch.zeros(2, 4, device=device, requires_grad=True), targets, **tokens)
    shared = torch.zeros(1, 4, device=device, requires_grad=True).mul(1).expand(2, 4)
    with pytest.raises(ValueError, match="rows lie apart"):
        dual_mode_loss(shared, targets, **tokens)


def test_no_gradient_is_formed_without_grad(device):
    logits, targets, tokens = random_case(3, (5,), 40, torch.float32, device, old=False, ref=False)
    before = logits.clone()
    with torch.no_grad():
        out = dual_mode_loss(logits, targets, **tokens, inplace_gradient=True, **COEFFICIENTS)
    assert not out.loss.requires_grad
    assert torch.equal(logits, before)


def test_only_the_loss_is_differentiable(device):
    logits, targets, tokens = random_case(3, (2, 3), 40, torch.float32, device, old=True, ref=True)
    tokens["advantages"].requires_grad_()
    out = dual_mode_loss(logits.requires_grad_(), targets, **tokens, **COEFFICIENTS)
    assert out.loss.requires_grad
    assert [x.requires_grad for x in out[1:]] == [False] * 4
    assert [x.shape for x in out[1:]] == [(2, 3)] * 4
    assert out.clipped.dtype == torch.bool


def test_module_holds_the_settings(device):
    logits, targets, tokens = random_case(3, (5,), 40, torch.float32, device, old=True, ref=True)
    scalars = {"clip_low": 0.1, "clip_high": 0.3, "clip_delta": 4.0, "temperature": 0.9, **COEFFICIENTS}
    module = DualModeLoss(**scalars)
    assert torch.equal(
        module(logits, targets, **tokens).loss, dual_mode_loss(logits, targets, **tokens, **scalars).loss
    )
    assert "clip_high=0.3" in repr(module)
    assert not list(module.parameters())
