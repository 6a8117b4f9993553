"""The options of dual_mode_loss: surrogates, foreign samplers, sequence ratios, loss types, softcap and keep_mask."""

import math

import pytest
import torch
import truth

from policy_split import DualModeLoss, dual_mode_loss

COEFFICIENTS = {"entropy_coef": (0.0, 0.02, -0.2), "kl_coef": (0.0, 0.05, 0.3)}
SHAPE = (3, 3)


def example(device, dtype=torch.float32, vocabulary=37, seed=0, old=True, ref=False, sampler=False, keep=False):
    """logits (3, 3, V), targets and per-token arguments, whose ratios lie inside and outside the usual clips."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def normal(scale=1.0):
        return (torch.randn(SHAPE, generator=generator) * scale).to(device, wide)

    logits = (torch.randn(*SHAPE, vocabulary, generator=generator) * 3).to(dtype).to(device)
    targets = torch.randint(vocabulary, SHAPE, generator=generator).to(device)
    kept = torch.rand(logits.shape, generator=generator).to(device) > 0.4
    kept.scatter_(-1, targets[..., None], True)
    tokens = {"keep_mask": kept} if keep else {}
    exact = logits.double().masked_fill(~tokens.get("keep_mask", kept | True), -torch.inf).log_softmax(-1)
    logprobs = exact.gather(-1, targets[..., None])[..., 0].to(wide)
    tokens |= {"advantages": normal(), "mode": torch.randint(3, SHAPE, generator=generator).to(device)}
    behaviour = {name: logprobs + normal(0.4) for name in ("old_logprobs", "ref_logprobs", "sampler_logprobs")}
    wanted = {"old_logprobs": old, "ref_logprobs": ref, "sampler_logprobs": sampler}
    return logits, targets, tokens | {name: x for name, x in behaviour.items() if wanted[name]}


def check(logits, targets, tokens, upstream=1.0, mask=None, inplace=False, **settings):
    """Loss and gradient against the truth, whose ratios of sequences know which tokens are valid."""
    settings = {**COEFFICIENTS, **settings}
    valid = (targets != -100) & (torch.ones_like(targets, dtype=torch.bool) if mask is None else mask.bool())
    weights = tokens.get("weights", valid.double() / valid.sum().clamp(min=1))
    leaf = logits.detach().requires_grad_()
    out = dual_mode_loss(
        leaf * 1.0 if inplace else leaf, targets, mask=mask, inplace_gradient=inplace, **tokens, **settings
    )
    (gradient,) = torch.autograd.grad(out.loss, leaf, torch.tensor(upstream).to(out.loss), retain_graph=not inplace)
    exact = logits.detach().double().reshape(-1, logits.shape[-1]).requires_grad_()
    flat = {name: x.reshape(exact.shape[0], -1).squeeze(1) for name, x in tokens.items() if name != "keep_mask"}
    flat = {name: x.double() if x.is_floating_point() else x for name, x in flat.items()}
    flat["weights"] = (weights * valid).reshape(-1).double()
    if "keep_mask" in tokens:
        flat["keep_mask"] = tokens["keep_mask"].expand(logits.shape).reshape(exact.shape)
    if settings.pop("ratio_level", "token") == "sequence":
        flat["sequences"] = valid
    expected = truth.loss(exact, targets.clamp(min=0).reshape(-1), **flat, **settings)
    (true_gradient,) = torch.autograd.grad(expected, exact, torch.tensor(upstream).to(expected))
    tolerance = 1e-11 if logits.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(out.loss.double(), expected, rtol=tolerance, atol=tolerance)
    terms = flat["weights"] * (3 * flat["advantages"].abs().max() + 3) * abs(upstream)
    truth.assert_gradient_close(gradient.reshape(exact.shape), true_gradient, logits.dtype, terms=terms)
    return out, gradient


RAGGED = [[1, 1, 0], [0, 0, 0], [1, 0, 1]]  # one row ends early, one is empty, one has a hole

SETTINGS = {
    "cispo": ({}, {"surrogate": "cispo"}),
    "cispo of TRL, epsilon_high 1.5": ({}, {"surrogate": "cispo", "clip_low": 1.0, "clip_high": 0.5}),
    "cispo on policy": ({"old": False}, {"surrogate": "cispo"}),
    "cispo of a foreign sampler": ({"sampler": True, "ref": True}, {"surrogate": "cispo", "sampler_cap": 1.1}),
    "foreign sampler": ({"sampler": True}, {"sampler_cap": 1.2}),
    "foreign sampler on policy": ({"sampler": True, "old": False, "ref": True}, {"sampler_cap": 0.9}),
    "asymmetric clip and delta": ({}, {"clip_low": 0.05, "clip_high": 0.3, "clip_delta": 1.35}),
    "sequence": ({"ref": True}, {"ratio_level": "sequence", "clip_low": 0.05, "clip_high": 0.1}),
    "sequence on policy": ({"old": False, "ref": True}, {"ratio_level": "sequence"}),
    "sequence of a foreign sampler": ({"sampler": True}, {"ratio_level": "sequence", "clip_delta": 1.25}),
    "softcap": ({"ref": True}, {"softcap": 5.0, "temperature": 0.8}),
    "keep_mask": ({"ref": True, "keep": True}, {"temperature": 0.8}),
    "all of them": ({"sampler": True, "ref": True, "keep": True}, {"softcap": 5.0, "surrogate": "cispo"}),
}
ALL = pytest.mark.parametrize("name", SETTINGS)


@ALL
@pytest.mark.parametrize(
    ("dtype", "mask", "vocabulary", "inplace"),  # 2053: a prime just above the CPU's tile of 2048
    [
        (torch.float32, None, 2053, True), (torch.bfloat16, RAGGED, 37, False), (torch.float16, None, 37, True),
        (torch.float64, RAGGED, 37, False),
    ],
)  # fmt: skip
def test_values_and_gradients(device, name, dtype, mask, vocabulary, inplace):
    """The gradient of a sequence's loss is not known in forward: never in place."""
    tokens, settings = SETTINGS[name]
    mask = None if mask is None else torch.tensor(mask, device=device)
    logits, targets, tokens = example(device, dtype, vocabulary, **tokens)
    targets[0, 1] = -100
    inplace = inplace and "ratio_level" not in settings
    out, gradient = check(logits, targets, tokens, upstream=-0.5, mask=mask, inplace=inplace, **settings)
    ignored = (targets == -100) if mask is None else (targets == -100) | (mask == 0)
    for x in (out.logprobs, out.entropy, out.kl, out.clipped, gradient):
        assert not x[ignored].any()
    assert gradient[~ignored].any()


@ALL
def test_a_second_backward_with_a_loss_scale(device, name):
    tokens, settings = SETTINGS[name]
    logits, targets, tokens = example(device, **tokens)
    leaf = logits.requires_grad_()
    out = dual_mode_loss(leaf, targets, **tokens, **settings, **COEFFICIENTS)
    once, scaled = (
        torch.autograd.grad(out.loss * factor, leaf, retain_graph=True)[0].clone() for factor in (1.0, 2.0**10)
    )
    torch.testing.assert_close(scaled / 2**10, once, rtol=1e-6, atol=1e-8)


@ALL
@pytest.mark.parametrize("backend", ["torch", "native"], indirect=True)
def test_the_module_holds_the_setting(device, name):
    tokens, settings = SETTINGS[name]
    logits, targets, tokens = example(device, **tokens)
    module = DualModeLoss(**settings, **COEFFICIENTS, loss_type="grpo")
    expected = dual_mode_loss(logits, targets, **tokens, **settings, **COEFFICIENTS, loss_type="grpo")
    for x, y in zip(module(logits, targets, **tokens), expected, strict=True):
        assert torch.equal(x, y)
    assert all(f"{key}={value}" in repr(module) for key, value in settings.items())


@pytest.mark.parametrize("backend", ["native"], indirect=True)
@pytest.mark.parametrize(
    "name",
    ["cispo of a foreign sampler", "asymmetric clip and delta", "sequence on policy", "sequence of a foreign sampler",
     "all of them"],
)  # fmt: skip
def test_compile_fullgraph(device, name):
    torch._dynamo.reset()
    tokens, settings = SETTINGS[name]
    logits, targets, tokens = example(device, **tokens)

    def step(logits):
        out = dual_mode_loss(logits, targets, **tokens, **settings, **COEFFICIENTS, loss_type="bnpo")
        return out.loss * 3

    expected, actual = (
        run(logits.requires_grad_()) for run in (step, torch.compile(step, fullgraph=True, backend="aot_eager"))
    )
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(*(torch.autograd.grad(x, logits)[0] for x in (actual, expected)))


def test_a_sequence_has_one_ratio(device):
    """Uniform over 4 words, old log-probs ln 1/4 - (0.1, 0.3): every ratio is exp(0.2), and the clip takes both."""
    logits = torch.zeros(1, 3, 4, device=device, dtype=torch.float64, requires_grad=True)
    old = math.log(0.25) - torch.tensor([[0.1, 0.3, 9.0]], device=device, dtype=torch.float64)
    mask, targets = torch.tensor([[1, 1, 0]], device=device), torch.zeros(1, 3, device=device, dtype=torch.long)
    ones = {"advantages": torch.ones_like(old), "mode": targets, "old_logprobs": old, "mask": mask}
    out = dual_mode_loss(logits, targets, **ones, ratio_level="sequence", clip_high=0.3)
    assert out.loss.item() == pytest.approx(-math.exp(0.2))
    (gradient,) = torch.autograd.grad(out.loss, logits)
    # d loss / d l = -exp(0.2) / 2 in each token
    assert gradient[0, 1].tolist() == pytest.approx([-math.exp(0.2) / 2 * x for x in (0.75, -0.25, -0.25, -0.25)])
    assert not gradient[0, 2].any()
    out = dual_mode_loss(logits, targets, **ones, ratio_level="sequence", clip_high=0.2)
    assert out.clipped.tolist() == [[True, True, False]]
    assert out.loss.item() == pytest.approx(-1.2)
    assert not torch.autograd.grad(out.loss, logits)[0].any()


def test_rows_that_are_not_read_do_not_reach_the_ratio_of_their_sequence(device):
    logits, targets, tokens = example(device, ref=True, sampler=True)
    mask = torch.tensor(RAGGED, device=device)
    settings = {"ratio_level": "sequence", "mask": mask, **COEFFICIENTS}
    losses = []
    for value in (0.0, math.nan):
        for name in ("advantages", "old_logprobs", "ref_logprobs", "sampler_logprobs"):
            tokens[name] = torch.where(mask == 1, tokens[name], value)
        leaf = torch.where(mask[..., None] == 1, logits, value).requires_grad_()
        out = dual_mode_loss(leaf, targets, **tokens, **settings)
        losses.append((out.loss, *torch.autograd.grad(out.loss, leaf)))
    assert torch.equal(losses[0][0], losses[1][0])
    assert torch.equal(losses[0][1], losses[1][1])
    assert losses[0][1].isfinite().all()


@pytest.mark.parametrize("shape", [(0, 3, 5), (2, 0, 5), (0, 5), (3, 5), (5,), (2, 1, 3, 5)])
def test_sequences_of_every_shape(device, shape):
    """The last dimension but one is a sequence, whatever stands before it; one token is one too."""
    logits = torch.linspace(-1, 1, math.prod(shape), device=device).view(shape).requires_grad_()
    targets = torch.ones(shape[:-1], dtype=torch.long, device=device)
    old = torch.linspace(-1.5, -1, targets.numel(), device=device).view(targets.shape)
    tokens = {"advantages": old + 2, "mode": targets, "weights": torch.ones_like(old), "old_logprobs": old}
    out = dual_mode_loss(logits, targets, **tokens, ratio_level="sequence", clip_low=1.0, clip_high=9.0)
    mean = (out.logprobs - old).mean(-1, keepdim=True) if len(shape) > 1 else out.logprobs - old
    torch.testing.assert_close(out.loss, -(mean.exp() * tokens["advantages"]).sum())
    assert torch.autograd.grad(out.loss, logits)[0].shape == shape


LOSS_TYPES = {  # as in TRL's GRPOTrainer, l and m (B, T); dapo in one process
    "grpo": lambda l, m: ((l * m).sum(-1) / m.sum(-1).clamp(min=1)).mean(),
    "bnpo": lambda l, m: (l * m).sum() / m.sum().clamp(min=1),
    "dapo": lambda l, m: (l * m).sum() / m.sum().clamp(min=1),
    "dr_grpo": lambda l, m: (l * m).sum() / (l.shape[0] * 7),
}


@pytest.mark.parametrize("loss_type", [*LOSS_TYPES, None])
@pytest.mark.parametrize("shape", [(2, 0), (0, 3), (0,)])
def test_nothing_has_a_loss_of_nothing(device, loss_type, shape):
    tokens, modes = torch.zeros(shape, device=device), torch.zeros(shape, dtype=torch.long, device=device)
    logits = torch.zeros(*shape, 5, device=device, requires_grad=True)
    out = dual_mode_loss(logits, modes, advantages=tokens, mode=modes, loss_type=loss_type, max_completion_length=7)
    out.loss.backward()
    assert out.loss == 0
    assert logits.grad.shape == logits.shape


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize(("mask", "ratio_level"), [(RAGGED, "token"), (RAGGED, "sequence"), ([[0] * 3] * 3, "token")])
def test_loss_types(device, loss_type, mask, ratio_level):
    logits, targets, tokens = example(device, ref=True)
    mask = torch.tensor(mask, device=device)
    ones = torch.ones_like(tokens["advantages"])
    weights = torch.autograd.functional.jacobian(lambda l: LOSS_TYPES[loss_type](l, mask.cpu()), ones.cpu().double())
    settings = {**COEFFICIENTS, "mask": mask, "ratio_level": ratio_level}
    leaves = [logits.clone().requires_grad_() for _ in range(2)]
    typed = dual_mode_loss(leaves[0], targets, **tokens, **settings, loss_type=loss_type, max_completion_length=7)
    weighted = dual_mode_loss(leaves[1], targets, **tokens, **settings, weights=weights.to(ones))
    torch.testing.assert_close(typed.loss, weighted.loss, rtol=1e-6, atol=1e-7)
    grads = [torch.autograd.grad(x.loss, leaf)[0] for x, leaf in zip((typed, weighted), leaves, strict=True)]
    torch.testing.assert_close(*grads, rtol=1e-6, atol=1e-8)
    assert grads[0].any() == mask.any()


@pytest.mark.parametrize("backend", ["torch"], indirect=True)
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"loss_type": "grpo", "weights": torch.ones(SHAPE)}, "weights and loss_type are two answers"),
        ({"loss_type": "dr_grpo"}, "divides by max_completion_length, which is not given"),
        ({"loss_type": "sapo"}, "loss_type='sapo' must be one of 'grpo', 'dapo', 'dr_grpo', 'bnpo'"),
        ({"surrogate": "ppo"}, "surrogate must be one of 'clip', 'cispo', 'sapo', 'vespo', got 'ppo'"),
        ({"ratio_level": "row"}, "ratio_level must be one of 'token', 'sequence', got 'row'"),
        ({"surrogate": "cispo", "clip_delta": 2.0}, "no sequence, no clip_delta"),
        ({"surrogate": "cispo", "ratio_level": "sequence"}, "no sequence, no clip_delta"),
        ({"sampler_cap": 0.0}, "sampler_cap must be above 0, got 0.0"),
        ({"sampler_cap": math.nan}, "sampler_cap must be above 0, got nan"),
        ({"sampler_logprobs": torch.ones(3)}, r"sampler_logprobs has shape \(3,\); expected \(3, 3\)"),
        ({"ratio_level": "sequence", "inplace_gradient": True}, "a sequence's ratio is not known there"),
        ({"softcap": -1.0}, "softcap must be finite and > 0, or None, got -1.0"),
        ({"keep_mask": torch.ones(5).bool()}, r"keep_mask has shape \(5,\); expected \(3, 3, 37\)"),
    ],
)
def test_bad_settings(device, settings, words):
    logits, targets, tokens = example(device)
    with pytest.raises(ValueError, match=words):
        dual_mode_loss(logits, targets, **tokens, **COEFFICIENTS, **settings)
    if set(settings) <= {"surrogate", "ratio_level", "clip_delta", "sampler_cap"}:  # at once, not at the first batch
        with pytest.raises(ValueError, match=words):
            DualModeLoss(**settings)


def test_a_loss_type_needs_sequences(device):
    ones = torch.ones(3, device=device)
    with pytest.raises(ValueError, match=r"loss_type='grpo' needs logits \(..., T, V\), got shape \(4,\)"):
        dual_mode_loss(
            torch.ones(4, device=device), ones[0].long(), advantages=ones[0], mode=ones[0].long(), loss_type="grpo"
        )
