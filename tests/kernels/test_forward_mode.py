"""Tangents by forward mode and by torch.func.jvp: the true ones in any case, never 0 in silence."""

import cases
import formulas
import pytest
import torch
from columns import two_backends
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.autograd import forward_ad

from policy_split import dual_mode_loss, logprobs_and_entropy, mode_divergence
from policy_split.drop_in import trl, verl

any_case = settings(
    max_examples=max(5, settings.default.max_examples // 10), deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
SMALL = (1, 2, 7, 65)
LAYOUTS = tuple(layout for layout in cases.LAYOUTS if layout != "expanded")  # which PyTorch gives no tangents
ROUTES = st.sampled_from(["dual numbers", "torch.func.jvp"])


def tangents_of(function, inputs, tangents, route):
    if route == "torch.func.jvp":
        return torch.func.jvp(function, inputs, tangents)[1]
    with forward_ad.dual_level():
        outputs = function(*map(forward_ad.make_dual, inputs, tangents))
        tangents = tuple(forward_ad.unpack_dual(x).tangent for x in outputs)
    assert all(x is not None for x in tangents)
    return tangents


def tangent_like(x, seed):
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(x)


def contracted(rows, leaves, tangents):
    """Tangents of rows (N,), each of its own logits alone, the sizes of their terms, and which rows are NaN."""
    grads = torch.autograd.grad(rows.sum(), leaves, retain_graph=True, materialize_grads=True)
    terms = [grad * tangent.reshape(grad.shape).double() for grad, tangent in zip(grads, tangents, strict=True)]
    # A filtered logit of NaN moves nothing; the slope of its softcap is NaN all the same.
    terms = [torch.where(rows.isnan()[:, None], x, x.nan_to_num(0.0)) for x in terms]
    return sum(x.sum(-1) for x in terms), sum(x.abs().sum(-1) for x in terms), rows.isnan()


def assert_tangents(actual, expected, terms, hidden, dtype):
    actual = actual.reshape(-1).double()
    assert torch.equal(actual.isnan(), hidden)
    slack = 1e-11 if dtype == torch.float64 else 1e-4
    assert ((actual - expected).abs() <= slack * (1 + terms))[~hidden].all()


@any_case
@given(drawn=cases.drawn_cases(SMALL, LAYOUTS), route=ROUTES)
def test_statistics(backend, device, drawn, route):
    case = cases.build(drawn | {"scale": min(drawn["scale"], 4.0), "offset": 0.0}, device)
    tangent = tangent_like(case.logits, drawn["seed"])
    function = lambda x: tuple(logprobs_and_entropy(x, case.targets, mask=case.mask, **case.options()))  # noqa: E731
    actual = tangents_of(function, (case.logits,), (tangent,), route)
    leaf = case.rows.detach().double().requires_grad_()
    rows = formulas.statistics(leaf, case.targets.reshape(-1), valid=case.valid, **case.flat_options())
    for x, row in zip(actual, rows, strict=True):
        assert_tangents(x, *contracted(row, (leaf,), (tangent,)), case.statistics_dtype)


@any_case
@given(drawn=cases.drawn_cases(SMALL, LAYOUTS), route=ROUTES)
def test_divergence(backend, device, drawn, route):
    plain = {"softcap": None, "keep": None, "offset": 0.0, "scale": min(drawn["scale"], 4.0)}
    case = cases.build(drawn | plain, device)
    other = torch.where(case.logits.isinf(), case.logits, tangent_like(case.logits, 7))
    pair = (case.logits, other)
    tangents = [tangent_like(x, drawn["seed"] + k) for k, x in enumerate(pair)]
    mask = None if case.mask is None else case.mask
    function = lambda a, b: tuple(mode_divergence(a, b, mask=mask, temperature=case.temperature))  # noqa: E731
    actual = tangents_of(function, pair, tuple(tangents), route)
    leaves = [x.reshape(case.rows.shape).detach().double().requires_grad_() for x in pair]
    valid = torch.ones_like(case.valid) if mask is None else mask.reshape(-1) != 0
    rows = formulas.divergence(*leaves, valid=valid, temperature=case.flat_options()["temperature"])
    for x, row in zip(actual, rows, strict=True):
        assert_tangents(x, *contracted(row, leaves, tangents), case.statistics_dtype)


OLD = torch.tensor([0.05, -0.6, 0.6, 2.0, 0.0, -0.05])  # log-ratios inside and outside of the clip range
SETTINGS = {
    "on_policy": {},
    "clip": {"old": True, "clip_delta": 3.0},
    "sequence": {"old": True, "ratio_level": "sequence"},
    "sequence_on_policy": {"ratio_level": "sequence"},
    "cispo": {"old": True, "surrogate": "cispo"},
    "sapo": {"old": True, "surrogate": "sapo"},
    "vespo": {"old": True, "surrogate": "vespo", "ratio_level": "sequence"},
    "corrected": {"old": True, "use_bias_correction_kl": True, "kl_cap": 1.0},
    "corrected_on_policy": {"use_bias_correction_kl": True},
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("route", ["dual numbers", "torch.func.jvp"])
@two_backends
def test_loss(backend, name, route):
    """Against its own gradient, which other tests hold to float64; every option of the distribution, -inf and masks."""
    case = cases.build(drawn_loss(), "cpu")
    options = dict(SETTINGS[name])
    logprobs = logprobs_and_entropy(case.logits, case.targets, mask=case.mask, **case.options()).logprobs
    if options.pop("old", False):
        options["old_logprobs"] = logprobs - OLD.view_as(logprobs)
    options |= {"sampler_logprobs": logprobs + 0.3, "ref_logprobs": logprobs - 0.5, "kl_coef": (0.1, 0.2)}
    options |= {"advantages": case.normal(), "mode": (case.targets >= 3).int(), "entropy_coef": (0.3, 0.1)}
    tangent = tangent_like(case.logits, 5)

    def loss(logits):
        return dual_mode_loss(logits, case.targets, mask=case.mask, **options, **case.options()).loss

    (actual,) = tangents_of(lambda x: (loss(x),), (case.logits,), (tangent,), route)
    leaf = case.logits.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    assert actual.abs() > 1e-2
    torch.testing.assert_close(actual, (gradient * tangent).sum(), rtol=1e-10, atol=1e-12)


def drawn_loss():
    return {
        "vocabulary": 7, "layout": "dense", "dtype": torch.float64, "mask": "bool", "ignored": True,
        "pattern": "single", "nan": "masked", "offset": 0.0, "scale": 1.0, "temperature": "row", "softcap": 5.0,
        "keep": "whole", "seed": 4,
    }  # fmt: skip


TARGETS = torch.tensor([[1, 2], [0, -100]])
DROP_IN = {
    "trl_entropy": trl.entropy_from_logits,
    "trl_both": lambda x: torch.stack(trl.selective_log_softmax_and_entropy(x, TARGETS, temperature=0.7)),
    "trl_one": lambda x: trl.selective_log_softmax(x, TARGETS),
    "trl_several": lambda x: trl.selective_log_softmax(x, torch.stack((TARGETS, TARGETS), -1), temperature=0.7),
    "verl_entropy": verl.entropy_from_logits,
    "verl_in_place": lambda x: verl.logprobs_from_logits(x * 1.0, TARGETS),
    "verl_beside": lambda x: verl.logprobs_from_logits(x, TARGETS, inplace_backward=False),
}


@pytest.mark.parametrize("name", DROP_IN)
@pytest.mark.parametrize("route", ["dual numbers", "torch.func.jvp"])
@two_backends
def test_drop_in(backend, name, route):
    function = DROP_IN[name]
    logits = torch.randn(2, 2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    logits[0, 1, 3] = -torch.inf
    tangent = tangent_like(logits, 2)
    (actual,) = tangents_of(lambda x: (function(x),), (logits,), (tangent,), route)
    step = 1e-6 * tangent
    expected = (function(logits + step) - function(logits - step)) / 2e-6
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-8)


@two_backends
def test_of_a_target_that_cannot_be_drawn(backend):
    """On-policy, where the ratio is 1 and log-probs are -inf: the tangent is that of the gradient, which is finite."""
    logits = torch.tensor([[0.0, 1.0, -torch.inf, 2.0]], requires_grad=True)
    tokens = {"advantages": torch.tensor([1.5]), "mode": torch.tensor([1]), "entropy_coef": (0.1, 0.2)}
    loss = lambda x: dual_mode_loss(x, torch.tensor([2]), **tokens).loss  # noqa: E731
    (gradient,) = torch.autograd.grad(loss(logits), logits)
    tangent = torch.tensor([[0.5, -1.0, 3.0, 2.0]])
    (actual,) = tangents_of(lambda x: (loss(x),), (logits.detach(),), (tangent,), "torch.func.jvp")
    torch.testing.assert_close(actual, (gradient * tangent).sum())
