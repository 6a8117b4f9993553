"""Any layout, dtype, mask, option and pattern of -inf and NaN against float64, with eager PyTorch as the yardstick.

The three-way rule: our error is at most twice that of the same formula in eager PyTorch on the same numbers, plus a
floor that is stated in `FLOOR`; so no tolerance hides what a user of eager PyTorch would not also see.
"""

import cases
import formulas
import pytest
import torch
from closeness import assert_gradients, assert_values, statistics_sizes
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from policy_split import dual_mode_loss, jensen_shannon_divergence, logprobs_and_entropy, mode_divergence

SMALL = (1, 2, 7, 1023, 2053)  # 2053: a prime just above the CPU's tile of 2048, below the GPU's
LARGE = (32000, 129920)
FEW = ("few", "few_sliced")
UPSTREAM = st.sampled_from(["random", "expanded"])

PLAIN = {
    "vocabulary": 7, "layout": "dense", "dtype": torch.float32, "mask": "bool", "ignored": False, "pattern": "none",
    "nan": "none", "offset": 0.0, "scale": 1.0, "temperature": "row", "softcap": 5.0, "keep": "whole",
    "seed": 73,  # of the few with a ratio outside of each bound, a cap that acts, and KLs of both signs of x
}  # fmt: skip
RISING = PLAIN | {"vocabulary": 2053, "pattern": "rising", "scale": 8.0, "softcap": None, "keep": None}


def any_case(percent):
    """Of the examples of hypothesis' profile, which are 100 unless it says otherwise."""
    return settings(
        max_examples=settings.default.max_examples * percent // 100, deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )  # fmt: skip


def leaf_rows(case):
    """(rows in float64, rows in their own dtype), flat, each a leaf for the formulas."""
    return (x.detach().clone().requires_grad_() for x in (case.rows.double(), case.rows))


def upstreams(case, kind, count):
    if kind == "expanded":
        return [torch.tensor(0.3 + k, dtype=case.statistics_dtype, device=case.logits.device).expand(case.targets.shape)
                for k in range(count)]  # fmt: skip
    return [case.normal() for _ in range(count)]


def check_statistics(drawn, kind, backend, device):
    case = cases.build(drawn, device)
    leaf = case.logits.detach().requires_grad_()
    out = logprobs_and_entropy(leaf, case.targets, mask=case.mask, **case.options())
    grads = upstreams(case, kind, 2)
    (gradient,) = torch.autograd.grad(out, leaf, grads)
    flat = [g.reshape(-1) for g in grads]
    results = []
    for x, dtype in zip(leaf_rows(case), (torch.float64, case.statistics_dtype), strict=True):
        rows = formulas.statistics(x, case.targets.reshape(-1), valid=case.valid, dtype=dtype, **case.flat_options())
        results.append((rows, torch.autograd.grad(rows, x, [g.to(dtype) for g in flat])[0]))
    (exact, true_gradient), (eager, eager_gradient) = results
    sizes = statistics_sizes(case, *exact)
    for name, *values in zip(("logprobs", "entropy"), out, eager, exact, sizes, strict=True):
        assert_values(name, *values)
    size = (flat[0].abs() * case.rounding + flat[1].abs() * sizes[1]) * 2
    assert_gradients(gradient, eager_gradient, true_gradient, size, case.unmoved(), backend)


def check_divergence(drawn, kind, backend, device):
    case = cases.build(drawn | {"softcap": None, "keep": None}, device)
    other = cases.build(drawn | {"softcap": None, "keep": None, "scale": 1.0, "offset": 0.0}, device).logits
    other = torch.where(case.logits == -cases.INF, case.logits, other.masked_fill(other == -cases.INF, 0.0))
    if drawn["seed"] % 2:
        other = (case.logits.double() + 1e-3 * other.double()).to(case.logits.dtype)  # a small divergence
    leaves = [x.detach().requires_grad_() for x in (case.logits, other)]
    mask = case.valid.view(case.targets.shape)
    out = mode_divergence(*leaves, mask=mask, temperature=case.temperature)
    grads = upstreams(case, kind, 4)
    gradients = torch.autograd.grad(out, leaves, grads)
    flat, temperature = [g.reshape(-1) for g in grads], case.flat_options()["temperature"]
    results = []
    for dtype in (torch.float64, case.statistics_dtype):
        own = torch.float64 if dtype == torch.float64 else case.logits.dtype
        pair = [x.detach().reshape(case.rows.shape).to(own).requires_grad_() for x in leaves]
        rows = formulas.divergence(*pair, valid=case.valid, dtype=dtype, temperature=temperature)
        results.append((rows, torch.autograd.grad(rows, pair, [g.to(dtype) for g in flat])))
    (exact, true_gradients), (eager, eager_gradients) = results
    sizes = [1 + x.abs() for x in exact]
    for name, *values in zip(out._fields, out, eager, exact, sizes, strict=True):
        assert_values(name, *values)
    size = sum(g.abs() * x for g, x in zip(flat, sizes, strict=True)) * 2
    unmoved = (case.rows == -cases.INF) | ~case.valid[:, None]
    for gradient, *others in zip(gradients, eager_gradients, true_gradients, strict=True):
        assert_gradients(gradient, *others, size, unmoved, backend)


def check_mixture(drawn, kind, beta, backend, device):
    """-inf in one row alone has a place between the ends, where its KL would be infinite."""
    case = cases.build(drawn | {"softcap": None, "keep": None}, device)
    other = cases.build(drawn | {"softcap": None, "keep": None, "scale": 2.0, "offset": 0.0, "pattern": "single",
                                 "seed": drawn["seed"] + 1}, device).logits  # fmt: skip
    if beta in (0, 1):
        other = torch.where(case.logits == -cases.INF, case.logits, other.masked_fill(other == -cases.INF, 0.0))
    if drawn["seed"] % 2:
        other = (case.logits.double() + 1e-3 * other.double().clamp(min=-9)).to(case.logits.dtype)
    leaves = [x.detach().requires_grad_() for x in (case.logits, other)]
    mask = case.valid.view(case.targets.shape)
    out = jensen_shannon_divergence(*leaves, beta=beta, mask=mask, temperature=case.temperature)
    (upstream,) = upstreams(case, kind, 1)
    gradients = torch.autograd.grad(out, leaves, upstream)
    flat, temperature = upstream.reshape(-1), case.flat_options()["temperature"]
    results = []
    for dtype in (torch.float64, case.statistics_dtype):
        own = torch.float64 if dtype == torch.float64 else case.logits.dtype
        pair = [x.detach().reshape(case.rows.shape).to(own).requires_grad_() for x in leaves]
        rows = formulas.jensen_shannon(*pair, beta=beta, valid=case.valid, dtype=dtype, temperature=temperature)
        results.append((rows, torch.autograd.grad(rows, pair, flat.to(dtype))))
    (exact, true_gradients), (eager, eager_gradients) = results
    size = 1 + exact.abs()
    assert_values("divergence", out, eager, exact, size)
    for logits, gradient, *others in zip(leaves, gradients, eager_gradients, true_gradients, strict=True):
        unmoved = (logits.detach().reshape(case.rows.shape) == -cases.INF) | ~case.valid[:, None]
        assert_gradients(gradient, *others, flat.abs() * size * 2, unmoved, backend)


EVERY_CLIP = {"clip_low": 0.1, "clip_high": 0.28, "clip_delta": 6.0, "sampler_cap": 0.8, "old": True, "ref": True,
              "sampler": True, "inplace": False, "use_bias_correction_kl": True, "kl_cap": 0.4}  # fmt: skip
COEFFICIENTS = {"entropy_coef": (0.0, 0.01, -0.2), "kl_coef": (0.0, 0.05, 0.3)}
# Of the ratios' logarithms: well away from the bounds of every clip below, where float32 and float64 may disagree.
LOG_RATIOS = (0.0, 0.05, -0.05, 0.6, -0.6, 2.0)
CLIPS = st.fixed_dictionaries({
    "clip_low": st.sampled_from([0.1, 0.2, 1.0]),
    "clip_high": st.sampled_from([0.1, 0.28, 4.0]),
    "clip_delta": st.sampled_from([None, 6.0]),
    "sampler_cap": st.sampled_from([0.8, 2.0]),
    "kind": st.sampled_from(["clip", "clip", "cispo", "sequence", "sapo", "vespo"]),
    "use_bias_correction_kl": st.booleans(), "kl_cap": st.sampled_from([None, None, 0.4]),
    "old": st.booleans(), "ref": st.booleans(), "sampler": st.booleans(), "inplace": st.booleans(),
})  # fmt: skip


def loss_arguments(case, clips):
    """Per-token arguments (...) and settings of the loss; log-probs near those of the case."""
    kind, old, ref, sampler, _ = (clips.pop(name) for name in ("kind", "old", "ref", "sampler", "inplace"))
    settings = {**clips, "surrogate": "clip" if kind == "sequence" else kind}
    settings["ratio_level"] = "sequence" if kind in ("sequence", "vespo") else "token"
    if kind == "cispo":
        settings["clip_delta"] = None
    if kind in ("sapo", "vespo"):
        own = {"sapo": {"sapo_temperature": (0.7, 1.6)}, "vespo": {"vespo_k": (1.5, 2.5), "vespo_lambda": (2.0, 1.0)}}
        settings = {name: x for name, x in settings.items() if not name.startswith("clip")} | own[kind]
    flat_targets = case.targets.reshape(-1)
    exact, _ = formulas.statistics(case.rows, flat_targets, valid=case.valid, **case.flat_options())
    near = exact.nan_to_num(neginf=-3.0).view(case.targets.shape).to(case.statistics_dtype)
    tokens = {
        "advantages": case.normal(),
        "weights": case.normal().abs() / max(1, case.targets.numel()),
        "mode": torch.randint(3, case.targets.shape, generator=case.generator).to(case.logits.device),
    }
    if case.target_at_minus_inf:  # its log-prob: only a ratio of 0 and the clip have a finite loss
        settings |= {"surrogate": "clip", "ratio_level": "token", "clip_low": 0.1, "clip_high": 0.28}
        settings = {name: x for name, x in settings.items() if not name.startswith(("sapo", "vespo"))}
        old, ref, sampler = True, False, False
    if old:
        tokens["old_logprobs"] = near - case.choice(LOG_RATIOS)
    if ref:
        tokens["ref_logprobs"] = near - case.choice(LOG_RATIOS)
    if sampler:
        tokens["sampler_logprobs"] = tokens.get("old_logprobs", near) - case.choice((0.5, -0.5, 1.5))
    return tokens, settings | COEFFICIENTS


def check_loss(drawn, clips, upstream, backend, device):
    case = cases.build(drawn, device)
    inplace = (
        clips["inplace"]
        and clips["kind"] not in ("sequence", "vespo")
        and drawn["layout"] not in ("expanded", "strided_vocabulary")
    )
    tokens, scalars = loss_arguments(case, dict(clips))
    leaf = case.logits.detach().requires_grad_()
    logits = leaf * 1.0 if inplace else leaf
    out = dual_mode_loss(
        logits, case.targets, mask=case.mask, **tokens, **scalars, **case.options(), inplace_gradient=inplace
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(out.loss * upstream, leaf)
    results = []
    for x, dtype in zip(leaf_rows(case), (torch.float64, case.statistics_dtype), strict=True):
        flat = {name: t.reshape(-1) if name == "mode" else t.reshape(-1).to(dtype) for name, t in tokens.items()}
        length = case.targets.shape[-1] if case.targets.dim() else 1
        rows = formulas.loss(
            x, case.targets.reshape(-1), **flat, **scalars, **case.flat_options(), valid=case.valid,
            rows_per_sequence=length, dtype=dtype,
        )  # fmt: skip
        results.append((rows, torch.autograd.grad(rows[0].sum() * upstream, x)[0]))
    (exact, true_gradient), (eager, eager_gradient) = results
    assert torch.equal(out.clipped.reshape(-1)[~exact[1].isnan()], exact[4][~exact[1].isnan()])
    logprob_size, entropy_size = statistics_sizes(case, *exact[1:3])
    sizes = (
        logprob_size,
        entropy_size,
        (1 + exact[3].detach()) * logprob_size.nan_to_num(nan=1.0),
    )  # exp(ref - l): as far off as l is
    for name, *values in zip(("logprobs", "entropy", "kl"), out[1:4], eager[1:4], exact[1:4], sizes, strict=True):
        assert_values(name, *values)
    weights, advantages = (tokens[name].reshape(-1).double() for name in ("weights", "advantages"))
    # A ratio is at most e^2 and the log-prob's error comes into it; the entropy and the KL have coefficients up to 0.3.
    size = weights * (8 * advantages.abs() * sizes[0] + sizes[1] + 8)
    size = torch.where(exact[0].isnan(), torch.nan, size)  # one NaN is that of its whole sequence
    total = [x[0].sum().reshape(1) for x in (eager, exact)]
    assert_values("loss", out.loss, *total, size.nan_to_num().sum().reshape(1) + total[1].abs())
    assert_gradients(gradient, eager_gradient, true_gradient, size * abs(upstream), case.unmoved(), backend)


@any_case(20)
@example(drawn=PLAIN, kind="random")
@example(drawn=RISING, kind="random")
@given(drawn=cases.drawn_cases(SMALL), kind=UPSTREAM)
def test_statistics_of_any_case(backend, device, drawn, kind):
    check_statistics(drawn, kind, backend, device)


@any_case(20)
@example(drawn=PLAIN, kind="random")
@example(drawn=RISING, kind="random")
@given(drawn=cases.drawn_cases(SMALL), kind=UPSTREAM)
def test_divergence_of_any_case(backend, device, drawn, kind):
    check_divergence(drawn, kind, backend, device)


@any_case(20)
@example(drawn=PLAIN, kind="random", beta=0.5)
@example(drawn=RISING, kind="random", beta=0.9)
@given(drawn=cases.drawn_cases(SMALL), kind=UPSTREAM, beta=st.sampled_from([0.0, 0.05, 0.5, 0.9, 1.0]))
def test_mixture_of_any_case(backend, device, drawn, kind, beta):
    check_mixture(drawn, kind, beta, backend, device)


@any_case(20)
@example(drawn=PLAIN, clips=EVERY_CLIP | {"kind": "clip"}, upstream=-3.0)
@example(drawn=PLAIN, clips=EVERY_CLIP | {"kind": "cispo"}, upstream=-3.0)
@example(drawn=PLAIN | {"seed": 2}, clips=EVERY_CLIP | {"kind": "sequence"}, upstream=-3.0)
@example(drawn=PLAIN, clips=EVERY_CLIP | {"kind": "sapo"}, upstream=-3.0)
@example(drawn=PLAIN, clips=EVERY_CLIP | {"kind": "vespo"}, upstream=-3.0)
@given(drawn=cases.drawn_cases(SMALL), clips=CLIPS, upstream=st.sampled_from([1.0, 0.25, -3.0]))
def test_loss_of_any_case(backend, device, drawn, clips, upstream):
    check_loss(drawn, clips, upstream, backend, device)


@pytest.mark.parametrize("backend", ["torch", "native"], indirect=True)
@any_case(8)
@given(drawn=cases.drawn_cases(LARGE, FEW), kind=UPSTREAM, clips=CLIPS)
def test_large_vocabularies(backend, device, drawn, kind, clips):
    check_statistics(drawn, kind, backend, device)
    check_divergence(drawn, kind, backend, device)
    check_loss(drawn, clips, 1.0, backend, device)
