"""dual_mode_loss: literal numbers, float64 truth on every backend, upstream gradients, bad input."""

import math

import pytest
import torch
import truth
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policy_split import DualModeLoss, dual_mode_loss, logprobs_and_entropy


def literal(device, **options):
    """Two logits whose softmax is exactly (1/4, 3/4): l = ln(3/4), H = 2 ln 2 - 0.75 ln 3."""
    logits = torch.tensor([[0.0, math.log(3.0)]], dtype=torch.float64, device=device, requires_grad=True)
    tokens = {"advantages": 2.0, "old_logprobs": None, "ref_logprobs": None, "mode": 1, "weights": 0.5}
    tokens.update({name: options.pop(name) for name in list(options) if name in tokens})
    tokens = {name: None if x is None else torch.tensor([x], device=device) for name, x in tokens.items()}
    out = dual_mode_loss(logits, torch.tensor([1], device=device), **tokens, **options)
    (gradient,) = torch.autograd.grad(out.loss, logits)
    return out, gradient[0].tolist()


LN2, LN3 = math.log(2), math.log(3)


def test_literal_on_policy(device):
    """L = -w A; dL/dl = -w A = -1; gradient = -1 * (0 - 1/4, 1 - 3/4)."""
    out, gradient = literal(device)
    assert out.loss.item() == pytest.approx(-1.0)
    assert gradient == pytest.approx([0.25, -0.25])
    assert out.logprobs.item() == pytest.approx(LN3 - 2 * LN2)
    assert out.entropy.item() == pytest.approx(2 * LN2 - 0.75 * LN3)
    assert not out.clipped.item()
    assert out.kl.item() == 0


def test_literal_ratio_inside_the_clip(device):
    """old = ln(3/4) - ln(1.1): r = 1.1, L = -0.5 * 1.1 * 2; dL/dl = -1.1."""
    out, gradient = literal(device, old_logprobs=LN3 - 2 * LN2 - math.log(1.1))
    assert out.loss.item() == pytest.approx(-1.1)
    assert gradient == pytest.approx([0.275, -0.275])
    assert not out.clipped.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "surrogate", "clipped"),
    [
        (1.5, 2.0, 2.4, True),  # min(3, 1.2 * 2)
        (0.5, 2.0, 1.0, False),  # min(1, 0.8 * 2)
        (0.5, -2.0, -1.6, True),  # min(-1, -0.8 * 2)
        (1.5, -2.0, -3.0, False),  # min(-3, -2.4)
        (5.0, -2.0, -6.0, True),  # bounded by delta = 3
        (5.0, 2.0, 2.4, True),  # delta has no part in a positive advantage
    ],
)
def test_literal_clip(device, ratio, advantage, surrogate, clipped):
    out, gradient = literal(
        device, advantages=advantage, old_logprobs=LN3 - 2 * LN2 - math.log(ratio), clip_delta=3.0, weights=1.0
    )
    assert out.loss.item() == pytest.approx(-surrogate)
    assert out.clipped.item() == clipped
    slope = 0.0 if clipped else -ratio * advantage
    assert gradient == pytest.approx([-slope / 4, slope / 4])


@pytest.mark.parametrize("advantage", [2.0, -2.0])
@pytest.mark.parametrize("clip_high", [0.0, 0.5])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_literal_ratio_on_the_bound_is_not_clipped(device, advantage, clip_high, level):
    """On policy r = 1 = 1 - clip_low: the slope is that of r A on either side of the kink, as without a clip."""
    out, gradient = literal(
        device, advantages=advantage, weights=1.0, clip_low=0.0, clip_high=clip_high, ratio_level=level
    )
    assert out.loss.item() == -advantage
    assert gradient == pytest.approx([advantage / 4, -advantage / 4])
    assert not out.clipped.item()


def test_literal_ratio_on_the_upper_bound_and_on_delta(device):
    """Two logits of one size, l = -ln 2: r = 2 in every precision."""
    settings = {"weights": torch.ones(1, device=device), "mode": torch.zeros(1, dtype=torch.long, device=device)}
    for advantage, bounds in ((3.0, {"clip_high": 1.0}), (-3.0, {"clip_high": 0.5, "clip_delta": 2.0})):
        logits = torch.zeros(1, 2, dtype=torch.float64, device=device, requires_grad=True)
        old = torch.full((1,), math.log(0.5), device=device, dtype=torch.float64) - math.log(2.0)
        tokens = {"advantages": torch.full((1,), advantage, device=device), "old_logprobs": old} | settings
        out = dual_mode_loss(logits, torch.zeros(1, dtype=torch.long, device=device), **tokens, **bounds)
        (gradient,) = torch.autograd.grad(out.loss, logits)
        assert out.loss.item() == pytest.approx(-2 * advantage)
        assert gradient[0].tolist() == pytest.approx([-advantage, advantage])
        assert not out.clipped.item()


def test_literal_entropy_and_kl_of_the_mode(device):
    """Mode 1 takes the second coefficients. k3 with l_ref = l + ln 2: 2 - ln 2 - 1; its slope in l is 1 - 2."""
    out, gradient = literal(
        device, advantages=0.0, weights=1.0, entropy_coef=(9.0, 0.1), kl_coef=(9.0, 0.2), ref_logprobs=LN3 - LN2
    )
    entropy = 2 * LN2 - 0.75 * LN3
    assert out.kl.item() == pytest.approx(1 - LN2)
    assert out.loss.item() == pytest.approx(-0.1 * entropy + 0.2 * (1 - LN2))
    # dH/dz = -p (ln p + H) = (0.75 * 0.25 * ln 3) * (1, -1); dl/dz = (-1/4, 1/4)
    expected = [0.2 * -1 * -0.25 - 0.1 * 0.1875 * LN3, 0.2 * -1 * 0.25 + 0.1 * 0.1875 * LN3]
    assert gradient == pytest.approx(expected)


def test_a_coefficient_of_zero_takes_an_infinite_term_away(device):
    """A reference policy that never draws the token: its KL is infinite, and with kl_coef 0 nobody minds."""
    out, gradient = literal(device, ref_logprobs=-math.inf, kl_coef=(1.0, 0.0))
    assert out.kl.item() == math.inf
    assert out.loss.item() == pytest.approx(-1.0)
    assert gradient == pytest.approx([0.25, -0.25])


def test_default_weights_are_the_mean_over_valid_tokens(device):
    logits = torch.zeros(2, 3, 4, device=device)
    targets = torch.zeros(2, 3, dtype=torch.long, device=device)
    targets[0, 0] = -100
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]], device=device)
    advantages = torch.tensor([[7.0, 1.0, 9.0], [2.0, 3.0, 4.0]], device=device)
    out = dual_mode_loss(logits, targets, advantages=advantages, mode=targets.clamp(min=0), mask=mask)
    assert out.loss.item() == pytest.approx(-(1 + 2 + 3 + 4) / 4)


def test_three_modes_with_one_coefficient_given(device):
    """kl_coef stays at its zeros, which fit any number of modes."""
    logits = torch.zeros(3, 4, device=device)
    mode = torch.tensor([0, 1, 2], device=device)
    zeros = torch.zeros(3, device=device)
    out = dual_mode_loss(logits, mode, advantages=zeros, mode=mode, weights=zeros + 1, entropy_coef=(1.0, 10.0, 100.0))
    assert out.loss.item() == pytest.approx(-111 * math.log(4))


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


def test_double_backward_is_refused(device):
    logits, targets, tokens = random_case(3, (5,), 40, torch.float32, device, old=True, ref=False)
    leaf = logits.requires_grad_()
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.autograd.grad(dual_mode_loss(leaf, targets, **tokens, **COEFFICIENTS).loss, leaf, create_graph=True)
    logprobs, _ = logprobs_and_entropy(leaf, targets)
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.autograd.grad(logprobs.sum(), leaf, create_graph=True)


def test_module_holds_the_settings(device):
    logits, targets, tokens = random_case(3, (5,), 40, torch.float32, device, old=True, ref=True)
    scalars = {"clip_low": 0.1, "clip_high": 0.3, "clip_delta": 4.0, "temperature": 0.9, **COEFFICIENTS}
    module = DualModeLoss(**scalars)
    assert torch.equal(
        module(logits, targets, **tokens).loss, dual_mode_loss(logits, targets, **tokens, **scalars).loss
    )
    assert "clip_high=0.3" in repr(module)
    assert not list(module.parameters())


BAD = [
    ({"advantages": torch.ones(3)}, ValueError, r"advantages has shape \(3,\); expected \(2,\)"),
    ({"advantages": 1.0}, TypeError, "advantages must be a tensor"),
    ({"advantages": torch.ones(2, dtype=torch.complex64)}, TypeError, "advantages must hold real numbers"),
    ({"old_logprobs": torch.ones(2, 1)}, ValueError, r"old_logprobs has shape \(2, 1\)"),
    ({"weights": torch.ones(1)}, ValueError, r"weights has shape \(1,\)"),
    ({"mask": torch.ones(4)}, ValueError, r"mask has shape \(4,\)"),
    ({"mode": torch.tensor([0, 2])}, ValueError, "mode holds 2; 2 coefficients allow 0 to 1"),
    ({"mode": torch.tensor([-1, 1])}, ValueError, "mode holds -1"),
    ({"mode": torch.tensor([0.0, 1.0])}, TypeError, "mode must be integers"),
    ({"targets": torch.tensor([0.0, 1.0])}, TypeError, "targets must be integer"),
    ({"targets": torch.tensor([[0, 1]])}, ValueError, r"targets has shape \(1, 2\)"),
    ({"targets": torch.tensor([0, 4])}, IndexError, r"targets\[1\] = 4 is outside the vocabulary of 4"),
    ({"targets": torch.tensor([-1, 0])}, IndexError, r"targets\[0\] = -1"),
    ({"logits": torch.ones(2, 4, dtype=torch.int64)}, TypeError, "logits must be one of"),
    ({"logits": torch.ones(2, 0)}, ValueError, "V >= 1"),
    ({"logits": [1.0]}, TypeError, "logits must be a tensor"),
    ({"clip_low": -0.1}, ValueError, "clip_low must be between 0 and 1, got -0.1"),
    ({"clip_high": -0.1}, ValueError, "clip_high must be finite and >= 0, got -0.1"),
    ({"clip_high": float("nan")}, ValueError, "clip_high"),
    ({"clip_delta": 1.1}, ValueError, "clip_delta must be above"),
    ({"temperature": 0.0}, ValueError, "temperature must be finite and > 0, got 0.0"),
    ({"temperature": torch.tensor([1.0, -1.0])}, ValueError, "temperature must be > 0 in every row"),
    ({"temperature": torch.ones(3)}, ValueError, r"temperature has shape \(3,\)"),
    ({"entropy_coef": (0.1,)}, ValueError, "mode holds 1; 1 coefficients allow 0 to 0"),
    ({"entropy_coef": (0.1, 0.2, 0.3), "kl_coef": (0.1, 0.2)}, ValueError, "one coefficient per mode"),
    ({"entropy_coef": ()}, ValueError, "entropy_coef must be finite, one number per mode"),
    ({"entropy_coef": (0.1, float("inf"))}, ValueError, "entropy_coef must be finite"),
]


@pytest.mark.parametrize("backend", ["torch", "native"], indirect=True)
@pytest.mark.parametrize(("change", "error", "words"), BAD)
def test_bad_input(backend, change, error, words):
    arguments = {"logits": torch.zeros(2, 4), "targets": torch.tensor([0, 1])}
    arguments |= {"advantages": torch.ones(2), "mode": torch.tensor([0, 1]), **change}
    with pytest.raises(error, match=words):
        dual_mode_loss(arguments.pop("logits"), arguments.pop("targets"), **arguments)


@pytest.mark.parametrize("backend", ["triton"], indirect=True)
def test_a_target_out_of_range_on_a_gpu_is_nan_for_its_row(device):
    """No synchronisation for a check, and no read out of bounds."""
    logits = torch.randn(4, 33, device=device, requires_grad=True)
    targets = torch.tensor([3, 33, -7, 2**40], device=device)
    out = dual_mode_loss(logits, targets, advantages=torch.ones(4, device=device), mode=targets * 0)
    (gradient,) = torch.autograd.grad(out.loss, logits)
    for x in (out.logprobs, out.entropy, gradient):
        assert x[0].isfinite().all()
        assert x[1:].isnan().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs two devices")
def test_devices_must_agree():
    with pytest.raises(ValueError, match="expected the same device"):
        dual_mode_loss(
            torch.zeros(2, 4).cuda(), torch.tensor([0, 1]), advantages=torch.ones(2), mode=torch.zeros(2).long()
        )
