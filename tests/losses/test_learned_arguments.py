"""What is no logit and requires grad: its gradient, against float64 formulas, or an error that names it."""

import formulas
import pytest
import torch
from columns import two_backends

from policy_split import (
    DualModeLoss,
    dual_mode_loss,
    jensen_shannon_divergence,
    linear_dual_mode_loss,
    linear_logprobs_and_entropy,
    linear_token_loss,
    logprobs_and_entropy,
    mode_divergence,
)
from policy_split.drop_in import trl

GENERATOR = torch.Generator().manual_seed(11)


def normal(*size):
    return torch.randn(*size, dtype=torch.float64, generator=GENERATOR)


B, T, D, V = 2, 3, 4, 9
HIDDEN, WEIGHT = normal(B, T, D), normal(V, D)
LOGITS = HIDDEN @ WEIGHT.T
TARGETS = torch.tensor([[1, 8, 0], [3, -100, 2]])
VALID = (TARGETS != -100).reshape(-1)
NEAR = formulas.statistics(LOGITS.view(-1, V), TARGETS.view(-1), valid=VALID)[0].view(B, T)
VECTORS = {
    "advantages": torch.tensor([[1.0, -2.0, 0.0], [0.5, 1.0, -0.7]], dtype=torch.float64),
    "old_logprobs": NEAR - torch.tensor([[0.05, -0.6, 0.6], [2.0, 0.0, -0.05]]),
    "ref_logprobs": NEAR + 0.3 * normal(B, T),
    "sampler_logprobs": NEAR + 0.3 * normal(B, T),
    "weights": normal(B, T).abs(),
}
SETTINGS = {"mode": torch.tensor([[0, 1, 0], [1, 0, 1]]), "entropy_coef": (0.1, 0.3), "kl_coef": (0.2, 0.1)}
POLICIES = {
    "clip": {},
    "sequence": {"ratio_level": "sequence"},
    "cispo": {"surrogate": "cispo"},
    "delta": {"clip_delta": 1.5},
    "sapo": {"surrogate": "sapo"},
    "corrected": {"use_bias_correction_kl": True, "kl_cap": 0.2},
}


def exact_loss(logits, vectors, policy):
    flat = {name: x.reshape(-1) for name, x in (vectors | {"mode": SETTINGS["mode"]}).items()}
    sampler = flat.pop("sampler_logprobs")
    weight = (flat["old_logprobs"] - sampler).exp()  # the formulas take it as given
    flat["advantages"] = flat["advantages"] * torch.where(weight > 2.0, 2.0, weight)
    coefficients = {name: SETTINGS[name] for name in ("entropy_coef", "kl_coef")}
    rows = formulas.loss(
        logits.reshape(-1, V), TARGETS.reshape(-1), **flat, **coefficients, **policy, valid=VALID, rows_per_sequence=T
    )  # fmt: skip
    return rows[0].sum()


def leaves(names):
    return {name: x.clone().requires_grad_() if name in names else x for name, x in VECTORS.items()}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("names", [*[(name,) for name in VECTORS], tuple(VECTORS)], ids="-".join)
@two_backends
def test_per_token_arguments(backend, names, policy):
    """Beside the logits' own gradient, of logits and of hidden states; masked tokens' are 0."""
    gradients = []
    for kind in ("exact", "logits", "hidden", "logits alone"):
        vectors, hidden = leaves(names), HIDDEN.clone().requires_grad_()
        logits = hidden @ WEIGHT.T
        if kind == "exact":
            loss = exact_loss(logits, vectors, POLICIES[policy])
        elif kind == "hidden":
            loss = linear_dual_mode_loss(hidden, WEIGHT, TARGETS, **vectors, **SETTINGS, **POLICIES[policy]).loss
        else:
            logits = logits.detach() if kind == "logits alone" else logits
            loss = DualModeLoss(
                entropy_coef=SETTINGS["entropy_coef"], kl_coef=SETTINGS["kl_coef"], **POLICIES[policy]
            )(logits, TARGETS, mode=SETTINGS["mode"], **vectors).loss  # fmt: skip
        inputs = [vectors[name] for name in names] + ([hidden] if kind != "logits alone" else [])
        assert loss.requires_grad
        gradients.append(torch.autograd.grad(loss * 3, inputs, materialize_grads=True))
    exact = gradients[0]
    assert all(x.abs().max() > 1e-3 for x in exact)
    assert all(x[1, 1] == 0 for x in exact[:-1])
    for kind in gradients[1:]:
        for x, y in zip(kind, exact, strict=False):
            torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12)


@two_backends
def test_what_does_not_count_may_be_nan(backend):
    vectors = {name: x.clone() for name, x in VECTORS.items()}
    for x in vectors.values():
        x[1, 1] = torch.nan
        x.requires_grad_()
    logits = LOGITS.clone()
    logits[1, 1] = torch.nan
    leaf = logits.requires_grad_()
    for policy in POLICIES.values():
        loss = dual_mode_loss(leaf, TARGETS, **vectors, **SETTINGS, **policy).loss
        for gradient in torch.autograd.grad(loss, [leaf, *vectors.values()]):
            assert gradient.isfinite().all()
            assert (gradient[1, 1] == 0).all()


@two_backends
def test_no_gradient_is_asked_for_under_no_grad(backend):
    vectors = leaves(VECTORS)
    with torch.no_grad():
        out = dual_mode_loss(LOGITS, TARGETS, **vectors, **SETTINGS)
        inplace = dual_mode_loss(LOGITS * 1.0, TARGETS, **vectors, **SETTINGS, inplace_gradient=True)
    assert not any(x.requires_grad for x in (*out, *inplace))
    torch.testing.assert_close(out.loss, exact_loss(LOGITS, VECTORS, {}))


TEMPERATURES = [torch.tensor(0.8, dtype=torch.float64), torch.tensor([[0.7, 1.0, 2.0], [0.5, 1.0, 1.5]])]
OF_TEMPERATURE = {
    "statistics": (
        lambda x, t: torch.stack(logprobs_and_entropy(x, TARGETS, temperature=t)),
        lambda x, t: torch.stack(formulas.statistics(x, TARGETS.view(-1), valid=VALID, temperature=t)).view(2, B, T),
    ),
    "divergence": (
        lambda x, t: torch.stack(mode_divergence(x, x.flip(-1), temperature=t)),
        lambda x, t: torch.stack(formulas.divergence(x, x.flip(-1), temperature=t)).view(4, B, T),
    ),
    "Jensen-Shannon": (
        lambda x, t: jensen_shannon_divergence(x, x.flip(-1), beta=0.2, temperature=t),
        lambda x, t: formulas.jensen_shannon(x, x.flip(-1), beta=0.2, temperature=t).view(B, T),
    ),
    "loss": (
        lambda x, t: dual_mode_loss(x, TARGETS, **VECTORS, **SETTINGS, temperature=t).loss,
        lambda x, t: formulas.loss(
            x, TARGETS.view(-1), **{k: v.view(-1) for k, v in (VECTORS | {"mode": SETTINGS["mode"]}).items()},
            entropy_coef=SETTINGS["entropy_coef"], kl_coef=SETTINGS["kl_coef"], valid=VALID, temperature=t,
        )[0].sum(),
    ),
    "trl": (
        lambda x, t: trl.selective_log_softmax(x, TARGETS[..., None].expand(B, T, 2), temperature=t),
        lambda x, t: formulas.statistics(
            x, TARGETS.view(-1), valid=VALID, temperature=t
        )[0].view(B, T, 1).expand(B, T, 2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("temperature", TEMPERATURES, ids=["one", "rows"])
@pytest.mark.parametrize("name", OF_TEMPERATURE)
@two_backends
def test_temperature(backend, name, temperature):
    gradients = []
    for function, shape in zip(OF_TEMPERATURE[name], ((B, T, V), (-1, V)), strict=True):
        learned, leaf = temperature.double().clone().requires_grad_(), LOGITS.clone().requires_grad_()
        out = function(leaf.view(shape), learned)
        upstream = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape) + 0.3
        gradients.append(torch.autograd.grad(out, (learned, leaf), upstream))
    ours, exact = gradients
    assert exact[0].abs().max() > 1e-3
    for x, y in zip(ours, exact, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-11)


@two_backends
def test_what_has_no_gradient_says_so(backend):
    learned = torch.tensor(0.8, requires_grad=True)
    for call in (
        lambda: linear_logprobs_and_entropy(HIDDEN, WEIGHT, TARGETS, temperature=learned),
        lambda: linear_token_loss(HIDDEN, WEIGHT, TARGETS, lambda lp, ent, _: lp, temperature=learned),
        lambda: linear_dual_mode_loss(HIDDEN, WEIGHT, TARGETS, **VECTORS, **SETTINGS, temperature=learned),
    ):
        with pytest.raises(NotImplementedError, match="temperature requires grad, and an LM head has no gradient"):
            call()
    weights = VECTORS["weights"].clone().requires_grad_()
    with pytest.raises(NotImplementedError, match="weights requires grad, and linear_token_loss has no gradient"):
        linear_token_loss(HIDDEN, WEIGHT, TARGETS, lambda lp, ent, _: lp, weights=weights)
    with torch.no_grad():
        linear_token_loss(HIDDEN, WEIGHT, TARGETS, lambda lp, ent, _: lp, weights=weights, temperature=learned)
    for argument in ({"advantages": VECTORS["advantages"].clone().requires_grad_()}, {"temperature": learned}):
        logits = LOGITS.clone().requires_grad_() * 1.0
        with pytest.raises(NotImplementedError, match="inplace_gradient=True forms the gradient of the logits alone"):
            dual_mode_loss(logits, TARGETS, **VECTORS | SETTINGS | argument, inplace_gradient=True)
