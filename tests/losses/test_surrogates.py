"""SAPO, VESPO, the corrected and the bounded KL, and losses that are not reduced: literal numbers, settings."""

import math

import formulas
import pytest
import torch

from policy_split import DualModeLoss, dual_mode_loss, linear_dual_mode_loss

V = 5


def one_token(device, logprob=0.25, **tokens):
    """Two words, the second of probability `logprob`; every other number a vector of one."""
    logits = torch.tensor([[math.log(1 - logprob), math.log(logprob)]], dtype=torch.float64, device=device)
    ones = torch.ones(1, dtype=torch.float64, device=device)
    vectors = {name: x * ones for name, x in tokens.items()}
    return logits.requires_grad_(), ones.long(), {"mode": 0 * ones.long()} | vectors


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [
        (1.0, 2.0, 4 / 0.5 / 2 * 2.0, 2.0),  # sigmoid(0) = 1/2, and the slope by the log of the ratio is A
        (1.0, -2.0, -4 / 2.0 / 2 * 2.0, -2.0),
        (3.0, 2.0, 8 / (1 + math.exp(-1)) * 2, 4 * 3 * 2 / ((1 + math.exp(-1)) * (1 + math.exp(1)))),
        (0.0, 2.0, 8 / (1 + math.exp(0.5)) * 2, 0.0),
        (3.0, 0.0, 0.0, 0.0),
    ],
)
def test_literal_sapo(device, ratio, advantage, value, slope):
    """arXiv 2511.20347: temperature 0.5 where A > 0, 2 elsewhere; p = 1/4, so d l / d z = (-3/4, 3/4)."""
    old = math.log(0.25 / ratio) if ratio else 200.0
    logits, targets, tokens = one_token(device, advantages=advantage, old_logprobs=old)
    out = dual_mode_loss(logits, targets, **tokens, surrogate="sapo", sapo_temperature=(0.5, 2.0))
    (gradient,) = torch.autograd.grad(out.loss, logits)
    assert out.loss.item() == pytest.approx(-value)
    assert gradient[0].tolist() == pytest.approx([0.75 * slope, -0.75 * slope])
    assert not out.clipped.any()


@pytest.mark.parametrize("backend", ["torch", "native", "triton"], indirect=True)
@pytest.mark.parametrize("ratio_log", [1000.0, 100.0, -1000.0, math.nan])
def test_a_sapo_gate_ends(device, ratio_log):
    """A ratio that overflows has the gate's end for a value, and no slope; NaN is not hidden."""
    logits = torch.zeros(1, 2, device=device, requires_grad=True)
    one = torch.ones(1, device=device)
    tokens = {"advantages": one, "mode": one.long() * 0, "old_logprobs": (math.log(0.5) - ratio_log) * one}
    out = dual_mode_loss(logits, one.long(), **tokens, surrogate="sapo")
    (gradient,) = torch.autograd.grad(out.loss, logits)
    if math.isnan(ratio_log):
        assert out.loss.isnan()
        assert gradient.isnan().all()
    else:
        assert out.loss.item() == pytest.approx(-4.0 if ratio_log > 0 else -4 / (1 + math.e), rel=1e-6)
        assert not gradient.any()


def test_literal_vespo(device):
    """Ratios 2 and 1/4 and one that is masked: w = 1/2. k, lambda: (2, 3) where A >= 0, (3, 2) elsewhere."""
    logits = torch.zeros(1, 3, 4, dtype=torch.float64, device=device, requires_grad=True)
    log_p = math.log(0.25)
    old = log_p - torch.tensor([[math.log(2), math.log(0.25), 50.0]], dtype=torch.float64, device=device)
    advantages = torch.tensor([[1.5, -0.5, 7.0]], dtype=torch.float64, device=device)
    targets = torch.zeros(1, 3, dtype=torch.long, device=device)
    out = dual_mode_loss(
        logits, targets, advantages=advantages, mode=targets, old_logprobs=old, surrogate="vespo",
        ratio_level="sequence", mask=torch.tensor([[1, 1, 0]], device=device), weights=torch.ones_like(old),
    )  # fmt: skip
    positive, negative = 0.5**2 * math.exp(3 * 0.5), 0.5**3 * math.exp(2 * 0.5)
    assert out.loss.item() == pytest.approx(-(positive * 1.5 - negative * 0.5) * log_p)
    (gradient,) = torch.autograd.grad(out.loss, logits)
    for t, push in enumerate((positive * 1.5, -negative * 0.5, 0.0)):
        assert gradient[0, t].tolist() == pytest.approx([-push * x for x in (0.75, -0.25, -0.25, -0.25)])
    assert not out.clipped.any()


@pytest.mark.parametrize("backend", ["torch"], indirect=True)
def test_vespo_of_an_extreme_sequence_counts_for_nothing(device):
    """w = e^900 and e^-900 in float32: the weight is 0, and nothing is NaN."""
    for shift in (300.0, -300.0):
        logits = torch.zeros(1, 3, 4, device=device, requires_grad=True)
        targets = torch.zeros(1, 3, dtype=torch.long, device=device)
        old = torch.full((1, 3), math.log(0.25) - shift, device=device)
        settings = {"surrogate": "vespo", "ratio_level": "sequence"}
        out = dual_mode_loss(logits, targets, advantages=old.sign(), mode=targets, old_logprobs=old, **settings)
        assert out.loss == 0
        assert not torch.autograd.grad(out.loss, logits)[0].any()


@pytest.mark.parametrize(("old", "ref"), [(0.3, 0.2), (None, 0.2), (0.2, 0.25), (0.25, 0.9), (1e-4, 1e-3)])
def test_literal_corrected_kl(device, old, ref):
    """p = 1/4. d (r k3) / d l = r * (l - ref), the KL's own in expectation; the value r * (e^x - x - 1)."""
    logits, targets, tokens = one_token(device, advantages=0.0, ref_logprobs=math.log(ref))
    if old is not None:
        tokens["old_logprobs"] = torch.full_like(tokens["advantages"], math.log(old))
    out = dual_mode_loss(logits, targets, **tokens, kl_coef=(3.0,), use_bias_correction_kl=True, entropy_coef=(0.0,))
    (gradient,) = torch.autograd.grad(out.loss, logits)
    ratio, x = 1 if old is None else 0.25 / old, math.log(ref / 0.25)
    assert out.kl.item() == pytest.approx(ratio * (ref / 0.25 - x - 1), rel=1e-9, abs=1e-12)
    assert out.loss.item() == pytest.approx(3 * out.kl.item())
    assert gradient[0].tolist() == pytest.approx([3 * ratio * x * 0.75, -3 * ratio * x * 0.75], rel=1e-9, abs=1e-12)


def test_the_corrected_kl_of_a_token_that_is_gone_is_finite(device):
    """l = -inf: exp(ref - old) is left of r * k3, and no derivative."""
    logits = torch.tensor([[-math.inf, 0.0]], device=device, requires_grad=True)
    one = torch.ones(1, device=device)
    tokens = {"advantages": 0 * one, "mode": 0 * one.long(), "old_logprobs": -2 * one, "ref_logprobs": -1 * one}
    out = dual_mode_loss(logits, 0 * one.long(), **tokens, kl_coef=(1.0,), use_bias_correction_kl=True)
    assert out.kl.item() == pytest.approx(math.e, rel=1e-6)
    assert not torch.autograd.grad(out.loss, logits)[0].any()


@pytest.mark.parametrize(("cap", "bounded"), [(10.0, True), (12.0, False)])
@pytest.mark.parametrize("corrected", [False, True])
def test_literal_cap_of_the_kl(device, cap, bounded, corrected):
    """verl bounds k3 at 10. The reference is 14 times as sure: k3 = 14 - ln 14 - 1 = 10.36."""
    logits, targets, tokens = one_token(device, advantages=0.0, ref_logprobs=math.log(3.5), old_logprobs=math.log(0.25))
    k3 = 14 - math.log(14) - 1
    settings = {"kl_coef": (2.0,), "kl_cap": cap, "use_bias_correction_kl": corrected}
    out = dual_mode_loss(logits, targets, **tokens, **settings)
    (gradient,) = torch.autograd.grad(out.loss, logits)
    assert out.kl.item() == pytest.approx(cap if bounded else k3)
    assert out.loss.item() == pytest.approx(2 * min(cap, k3))
    slope = 0.0 if bounded else -2 * (math.log(14) if corrected else 13.0)
    assert gradient[0].tolist() == pytest.approx([-0.75 * slope, 0.75 * slope])


def batch(device, dtype=torch.float64, rows=3, length=4):
    generator = torch.Generator().manual_seed(4)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device)

    logits = normal(rows, length, V).to(dtype)
    targets = torch.randint(V, (rows, length), generator=generator).to(device)
    logprobs = torch.log_softmax(logits.double(), -1).gather(-1, targets[..., None])[..., 0]
    tokens = {name: logprobs + 0.4 * normal(rows, length) for name in ("old_logprobs", "ref_logprobs")}
    tokens |= {"advantages": normal(rows, length), "mode": torch.randint(2, (rows, length), generator=generator)}
    tokens["mode"] = tokens["mode"].to(device)
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 1, 1], [1, 1, 0, 0]], device=device)
    return logits, targets, tokens, mask


KINDS = {
    "clip": {},
    "sapo": {"surrogate": "sapo"},
    "sequence": {"ratio_level": "sequence"},
    "vespo": {"surrogate": "vespo", "ratio_level": "sequence"},
    "corrected": {"use_bias_correction_kl": True, "kl_cap": 0.3},
}
COEFFICIENTS = {"entropy_coef": (0.1, 0.3), "kl_coef": (0.2, 0.05)}


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("weighted", [None, "weights", "loss_type"])
def test_losses_that_are_not_reduced(device, kind, weighted):
    """Each token's own loss, whose weight is 1 unless one is given, and its own upstream gradient, twice."""
    logits, targets, tokens, mask = batch(device)
    leaf = logits.requires_grad_()
    settings = {**tokens, **KINDS[kind], **COEFFICIENTS, "mask": mask}
    if weighted == "weights":
        settings["weights"] = torch.linspace(0.2, 2, 12, device=device, dtype=torch.float64).view(3, 4)
    if weighted == "loss_type":
        settings["loss_type"] = "grpo"
    out = dual_mode_loss(leaf, targets, **settings, reduction="none")
    summed = dual_mode_loss(leaf, targets, **settings)
    weight = {None: 1 / mask.sum(), "weights": 1.0, "loss_type": 1.0}[weighted]
    assert out.loss.shape == targets.shape
    assert not out.loss[mask == 0].any()
    torch.testing.assert_close(weight * out.loss.sum(), summed.loss)
    upstream = torch.linspace(-1, 2, 12, device=device, dtype=torch.float64).view(3, 4)
    exact = logits.detach().reshape(-1, V).requires_grad_()
    flat = {name: x.reshape(-1) for name, x in settings.items() if isinstance(x, torch.Tensor) and name != "mask"}
    flat.setdefault("weights", torch.ones(12, dtype=torch.float64, device=device))
    if weighted == "loss_type":
        flat["weights"] = (mask / mask.sum(-1, keepdim=True) / 3).reshape(-1).double()
    true = formulas.loss(
        exact, targets.reshape(-1), **flat, **KINDS[kind], **COEFFICIENTS, valid=mask.reshape(-1) != 0,
        rows_per_sequence=4,
    )[0]  # fmt: skip
    torch.testing.assert_close(out.loss.reshape(-1), true)
    (true_gradient,) = torch.autograd.grad(true, exact, upstream.reshape(-1))
    for factor in (1.0, -2.0):
        (gradient,) = torch.autograd.grad(out.loss, leaf, factor * upstream, retain_graph=True)
        torch.testing.assert_close(gradient.reshape(-1, V), factor * true_gradient)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("backend", ["torch", "native"], indirect=True)
def test_of_an_lm_head(device, kind, reduction):
    logits, targets, tokens, mask = batch(device)
    weight = torch.randn(V, V, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 2 * torch.eye(V)
    hidden = torch.linalg.solve(weight, logits.reshape(-1, V).T).T.reshape(logits.shape)
    settings = {**tokens, **KINDS[kind], **COEFFICIENTS, "mask": mask, "reduction": reduction}
    leaves = [x.detach().requires_grad_() for x in (hidden, weight)]
    out = linear_dual_mode_loss(*leaves, targets, **settings, chunk_bytes=5 * V * 8)
    whole = dual_mode_loss(leaves[0] @ leaves[1].T, targets, **settings)
    torch.testing.assert_close(out, whole, rtol=1e-9, atol=1e-9)
    upstream = torch.linspace(-1, 2, 12, dtype=torch.float64).view(3, 4) if reduction == "none" else torch.tensor(3.0)
    for ours, theirs in zip(
        torch.autograd.grad(out.loss, leaves, upstream.double()),
        torch.autograd.grad(whole.loss, leaves, upstream.double()),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("backend", ["torch", "native"], indirect=True)
def test_gradcheck(device, kind):
    logits, targets, tokens, mask = batch(device, rows=3)
    settings = {**tokens, **KINDS[kind], **COEFFICIENTS, "mask": mask, "reduction": "none"}
    if kind in ("clip", "sequence", "corrected"):  # away from kinks
        settings |= {"clip_low": 1.0, "clip_high": 50.0, "kl_cap": None}

    def run(x):
        return dual_mode_loss(x, targets, **settings).loss

    if kind == "vespo":  # its weight is detached
        old = tokens["old_logprobs"].clone()
        settings["old_logprobs"] = None
        assert old.shape == targets.shape
    assert torch.autograd.gradcheck(run, logits.requires_grad_())


def test_the_module_holds_the_settings():
    module = DualModeLoss(surrogate="sapo", sapo_temperature=(0.5, 2.0), kl_cap=10.0, reduction="none")
    logits, targets, tokens, _ = batch("cpu")
    settings = {"surrogate": "sapo", "sapo_temperature": (0.5, 2.0), "kl_cap": 10.0, "reduction": "none"}
    assert torch.equal(
        module(logits, targets, **tokens).loss, dual_mode_loss(logits, targets, **tokens, **settings).loss
    )
    assert "sapo_temperature=(0.5, 2.0)" in repr(module)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"surrogate": "vespo"}, "surrogate='vespo' weighs .*: ratio_level='sequence'"),
        (
            {"surrogate": "sapo", "clip_low": 0.1},
            "has no clip_low, got 0.1; its settings are sapo_temperature",
        ),
        ({"surrogate": "sapo", "clip_delta": 2.0}, "surrogate='sapo' has no clip_delta"),
        ({"surrogate": "clip", "sapo_temperature": (1.0, 2.0)}, "surrogate='clip' has no sapo_temperature"),
        ({"surrogate": "sapo", "vespo_k": (1.0, 2.0)}, "surrogate='sapo' has no vespo_k"),
        ({"surrogate": "sapo", "sapo_temperature": (0.0, 1.0)}, "sapo_temperature must be two finite numbers above 0"),
        ({"surrogate": "sapo", "sapo_temperature": (1.0,)}, "sapo_temperature must be two finite numbers above 0"),
        ({"surrogate": "vespo", "ratio_level": "sequence", "vespo_k": (1.0, math.nan)}, "vespo_k must be two finite"),
        ({"surrogate": "vespo", "ratio_level": "sequence", "clip_high": 3.0}, "surrogate='vespo' has no clip_high"),
        ({"kl_cap": 0.0}, "kl_cap must be above 0, or None, got 0.0"),
        ({"kl_cap": math.nan}, "kl_cap must be above 0, or None, got nan"),
        ({"reduction": "mean"}, "reduction must be one of 'sum', 'none', got 'mean'"),
        ({"surrogate": "luspo"}, "surrogate must be one of 'clip', 'cispo', 'sapo', 'vespo', got 'luspo'"),
        (
            {"surrogate": "vespo", "ratio_level": "sequence", "inplace_gradient": True},
            "a sequence's ratio is not known there",
        ),
    ],
)
def test_settings_that_do_not_go_together(settings, words):
    logits, targets, tokens, _ = batch("cpu")
    with pytest.raises(ValueError, match=words):
        dual_mode_loss(logits, targets, **tokens, **settings)
    if "inplace_gradient" not in settings:
        with pytest.raises(ValueError, match=words):
            DualModeLoss(**settings)
        with pytest.raises(ValueError, match=words):
            linear_dual_mode_loss(logits, torch.eye(V, dtype=torch.float64), targets, **tokens, **settings)


def test_a_list_of_the_default_numbers_is_the_default():
    logits, targets, tokens, _ = batch("cpu")
    dual_mode_loss(logits, targets, **tokens, sapo_temperature=[1.0, 1.05], vespo_k=[2, 3])
