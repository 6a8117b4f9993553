"""dual_mode_loss: literal numbers, worked by hand."""

import math

import pytest
import torch

from policy_split import dual_mode_loss


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


@pytest.mark.parametrize(
    ("ratio", "advantage", "low", "weight", "clipped"),
    [
        (1.5, 2.0, 1.0, 1.5, False),
        (4.0, 2.0, 1.0, 3.0, True),  # the weight is min(ratio, epsilon_high), whatever the sign of the advantage
        (4.0, -2.0, 1.0, 3.0, False),  # pushed back towards 1: TRL and Liger do not count it, either
        (4.0, 0.0, 1.0, 3.0, False),
        (0.01, 2.0, 1.0, 0.01, False),
        (0.01, 2.0, 0.75, 0.25, False),
        (0.01, -2.0, 0.75, 0.25, True),
        (0.01, -2.0, 1.0, 0.01, False),
        (2.9, 2.0, 1.0, 2.9, False),
    ],
)
def test_literal_cispo(device, ratio, advantage, low, weight, clipped):
    """p = (1/4, 3/4), 1 - low <= weight <= 3: loss -weight * A * ln(3/4), gradient -weight * A * (-1/4, 1/4)."""
    logits = torch.tensor([[0.0, math.log(3)]], dtype=torch.float64, device=device, requires_grad=True)
    one = torch.ones(1, dtype=torch.float64, device=device)
    out = dual_mode_loss(
        logits, one.long(), advantages=advantage * one, mode=one.long(), old_logprobs=math.log(0.75 / ratio) * one,
        surrogate="cispo", clip_low=low, clip_high=3.0 - 1,
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(out.loss, logits)
    assert out.loss.item() == pytest.approx(-weight * advantage * math.log(0.75))
    assert gradient[0].tolist() == pytest.approx([weight * advantage / 4, -weight * advantage / 4])
    assert out.clipped.item() == clipped


@pytest.mark.parametrize("surrogate", ["clip", "cispo"])
@pytest.mark.parametrize(("sampler", "factor"), [(-1.0, 0.4), (-4.0, 2.0), (-math.inf, 2.0), (0.0, math.exp(-1) * 0.4)])
def test_literal_sampler(device, surrogate, sampler, factor):
    """old = -1 + ln 0.4 against the engine's log-prob: the weight is cut at 2, also where the engine never drew it."""
    logits = torch.zeros(1, 5, device=device, requires_grad=True)
    one = torch.ones(1, device=device)
    tokens = {"advantages": 3 * one, "mode": one.long(), "old_logprobs": (math.log(0.4) - 1) * one}
    wide = {"surrogate": surrogate, "clip_low": 1.0, "clip_high": 99.0}
    plain = dual_mode_loss(logits, one.long(), **tokens, **wide)
    out = dual_mode_loss(logits, one.long(), **tokens, **wide, sampler_logprobs=sampler * one)
    for x, y in zip(
        (out.loss, *torch.autograd.grad(out.loss, logits)),
        (plain.loss, *torch.autograd.grad(plain.loss, logits)),
        strict=True,
    ):
        torch.testing.assert_close(x, factor * y, rtol=1e-6, atol=1e-7)


def test_literal_kl_far_from_the_reference(backend, device):
    """x = 2: k3 = e^2 - 2 - 1, its derivative by the log-prob 1 - e^2."""
    logits = torch.zeros(1, 4, dtype=torch.float64, device=device, requires_grad=True)
    targets, ones = torch.tensor([1], device=device), torch.ones(1, dtype=torch.float64, device=device)
    reference = ones * (2 - math.log(4))
    options = {"advantages": 0 * ones, "mode": targets * 0, "ref_logprobs": reference, "kl_coef": (1.0, 1.0)}
    out = dual_mode_loss(logits, targets, **options)
    out.loss.backward()
    assert out.kl.item() == pytest.approx(math.e**2 - 3, rel=1e-12)
    assert out.loss.item() == pytest.approx(math.e**2 - 3, rel=1e-12)
    expected = (1 - math.e**2) * torch.tensor([[-0.25, 0.75, -0.25, -0.25]], dtype=torch.float64)
    torch.testing.assert_close(logits.grad.cpu(), expected)
