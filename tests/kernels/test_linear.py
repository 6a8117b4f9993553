"""The LM head's functions against the same formula on float64 logits: values and gradients, every option, any chunk."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_cases import Head, relative_error

from policy_split import dual_mode_loss, linear_dual_mode_loss, linear_token_loss

TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}
VALUES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-5, torch.float16: 1e-5}
ONE_TOKEN, SEVEN_TOKENS = 1, 7 * 64 * 4  # bytes of a chunk; the buffer's rows are padded to 64 float32


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("chunk_bytes", [None, ONE_TOKEN, SEVEN_TOKENS])
@pytest.mark.parametrize("bias", [True, False])
def test_dual_mode_loss(dtype, chunk_bytes, bias):
    head = Head(dtype=dtype, bias=bias)
    out = head.dual_mode(chunk_bytes=chunk_bytes)
    loss, vectors = head.truth()
    assert out.loss.item() == pytest.approx(loss.item(), rel=VALUES[dtype], abs=VALUES[dtype])
    for name, expected in zip(("logprobs", "entropy", "kl", "clipped"), vectors, strict=True):
        torch.testing.assert_close(
            getattr(out, name).to(expected.dtype), expected, rtol=VALUES[dtype], atol=VALUES[dtype]
        )
        assert not getattr(out, name).requires_grad
    gradients = torch.autograd.grad(out.loss, head.leaves)
    assert all(g.dtype == dtype for g in gradients)
    assert relative_error(gradients, torch.autograd.grad(loss, head.exact)) < TOLERANCE[dtype]


OPTIONS = {
    "temperature": {"temperature": 0.6},
    "temperature_of_each": {"temperature": torch.linspace(0.5, 2, 23)},
    "softcap": {"softcap": 2.0},
    "scaled": {"logit_scale": 0.25},
    "scaled_softcap": {"logit_scale": 3.0, "softcap": 4.0, "temperature": 0.8},
    "kept": {"keep_mask": torch.rand(23, 57, generator=torch.Generator().manual_seed(5)) > 0.2},
    "kept_for_all": {"keep_mask": torch.arange(57) % 5 > 0},
    "cispo": {"surrogate": "cispo"},
    "clip_delta": {"clip_low": 0.1, "clip_high": 0.3, "clip_delta": 1.5},
    "sampler": {"sampler_logprobs": torch.linspace(-6, -2, 23, dtype=torch.float64), "sampler_cap": 1.3},
    "on_policy": {"old_logprobs": None},
    "no_reference": {"ref_logprobs": None, "kl_coef": (0.0, 0.0)},
}


@pytest.mark.parametrize("name", list(OPTIONS))
@pytest.mark.parametrize("chunk_bytes", [None, SEVEN_TOKENS])
def test_options_of_the_dual_mode_loss(name, chunk_bytes):
    head, options = Head(dtype=torch.float64), dict(OPTIONS[name])
    if "keep_mask" in options:  # a target that cannot be drawn has no gradient to compare
        keep = options["keep_mask"].expand(23, 57).clone()
        options["keep_mask"] = keep.scatter(1, head.targets.clamp(min=0)[:, None], True)
    out = head.dual_mode(chunk_bytes=chunk_bytes, **options)
    loss, _ = head.truth(**options)
    assert out.loss.item() == pytest.approx(loss.item(), rel=1e-6)
    gradients = torch.autograd.grad(out.loss, head.leaves)
    assert relative_error(gradients, torch.autograd.grad(loss, head.exact)) < 1e-6


def test_ratio_of_a_sequence():
    head = Head(tokens=24, dtype=torch.float64)
    rows = {name: x.view(4, 6) for name, x in head.tokens.items()} | {"mask": head.mask.view(4, 6)}
    out = linear_dual_mode_loss(
        head.hidden.view(4, 6, -1), head.weight, head.targets.view(4, 6), bias=head.bias, ratio_level="sequence",
        chunk_bytes=SEVEN_TOKENS, **rows,
    )  # fmt: skip
    assert out.logprobs.shape == (4, 6)
    options = {"ratio_level": "sequence", "rows_per_sequence": 6, "entropy_coef": (0.0, 0.0), "kl_coef": (0.0, 0.0)}
    loss, _ = head.truth(**options)
    assert out.loss.item() == pytest.approx(loss.item(), rel=1e-9)
    gradients = torch.autograd.grad(out.loss, head.leaves)
    assert relative_error(gradients, torch.autograd.grad(loss, head.exact)) < 1e-9


@pytest.mark.parametrize("settings", [{}, {"loss_type": "grpo"}, {"loss_type": "dr_grpo", "max_completion_length": 9}])
def test_weights_that_are_not_given_are_those_of_the_loss_on_logits(settings):
    head = Head(tokens=24, dtype=torch.float64)
    rows = {name: x.view(4, 6) for name, x in head.tokens.items() if name != "weights"}
    rows |= {"mask": head.mask.view(4, 6)} | settings
    targets = head.targets.view(4, 6)
    out = linear_dual_mode_loss(head.hidden.view(4, 6, -1), head.weight, targets, bias=head.bias, **rows)
    whole = dual_mode_loss(head.logits().view(4, 6, -1), targets, **rows)
    torch.testing.assert_close(out.loss, whole.loss)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("chunk_bytes", [None, SEVEN_TOKENS])
def test_statistics(dtype, chunk_bytes):
    head = Head(dtype=dtype)
    options = {"temperature": 0.7, "softcap": 5.0}
    logprobs, entropy = head.statistics(chunk_bytes=chunk_bytes, **options)
    right = head.truth(**options)[1][:2]
    upstream = [torch.linspace(-1, 1, 23, dtype=torch.float64), torch.linspace(2, -1, 23, dtype=torch.float64)]
    for x, y in zip((logprobs, entropy), right, strict=True):
        torch.testing.assert_close(x.double(), y, rtol=0, atol=30 * VALUES[dtype])
    gradients = torch.autograd.grad((logprobs, entropy), head.leaves, [x.to(logprobs.dtype) for x in upstream])
    assert relative_error(gradients, torch.autograd.grad(right, head.exact, upstream)) < TOLERANCE[dtype]


@pytest.mark.parametrize("which", [0, 1])
def test_gradient_of_one_statistic_alone(which):
    head = Head(dtype=torch.float64)
    gradients = torch.autograd.grad(head.statistics()[which].sum(), head.leaves)
    right = head.truth()[1][which].sum()
    assert relative_error(gradients, torch.autograd.grad(right, head.exact)) < 1e-12


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("chunk_bytes", [None, SEVEN_TOKENS])
def test_token_loss(dtype, chunk_bytes):
    head = Head(dtype=dtype)
    out = head.token_loss(head.policy_loss, chunk_bytes=chunk_bytes)
    fused = head.dual_mode(chunk_bytes=chunk_bytes)
    torch.testing.assert_close(out.loss, fused.loss, rtol=VALUES[dtype], atol=VALUES[dtype])
    torch.testing.assert_close(out.losses.sum(), fused.loss.detach(), rtol=VALUES[dtype], atol=VALUES[dtype])
    torch.testing.assert_close((out.logprobs, out.entropy), (fused.logprobs, fused.entropy))
    gradients = torch.autograd.grad(out.loss, head.leaves)
    assert relative_error(gradients, torch.autograd.grad(fused.loss, head.leaves)) < TOLERANCE[dtype]


def test_index_is_the_place_among_all_tokens():
    head, seen = Head(), []

    def loss_fn(logprobs, entropy, index):
        seen.append(index)
        return -logprobs

    head.token_loss(loss_fn, chunk_bytes=SEVEN_TOKENS)
    assert len(seen) > 1
    assert torch.equal(torch.cat(seen), head.valid.nonzero()[:, 0])
    assert all(index.dtype == torch.int64 for index in seen)
    seen.clear()
    head.mask = None
    head.targets.clamp_(min=0)
    head.token_loss(loss_fn, chunk_bytes=SEVEN_TOKENS)
    assert torch.equal(torch.cat(seen), torch.arange(23))


def test_gspo_by_two_passes():
    """A ratio that belongs to a sequence, known before the pass that forms the gradients: what the README shows."""
    head = Head(tokens=24, dtype=torch.float64)
    old, valid = head.tokens["old_logprobs"], head.valid.view(4, 6)
    with torch.no_grad():
        logprobs, _ = head.statistics()
        log_ratio = torch.where(valid, (logprobs - old).view(4, 6), 0.0).sum(1) / valid.sum(1)
        ratio = log_ratio.exp()[:, None].expand(4, 6).flatten()
        length = valid.sum(1)[:, None].expand(4, 6).flatten()
        # the derivative of the sequence's objective by its mean log-ratio, which its tokens share
        weights, advantages = head.tokens["weights"], head.tokens["advantages"]
        clipped = ratio.clamp(0.8, 1.2) * advantages < ratio * advantages
        push = torch.where(valid.flatten() & ~clipped, weights * advantages * ratio, 0.0).view(4, 6).sum(1)
        push = push[:, None].expand(4, 6).flatten() / length
    out = head.token_loss(lambda logprobs, entropy, index: -push[index] * logprobs, weights=torch.ones(24).double())
    options = {"ratio_level": "sequence", "rows_per_sequence": 6, "entropy_coef": (0.0, 0.0), "kl_coef": (0.0, 0.0)}
    loss, _ = head.truth(**options)
    gradients = torch.autograd.grad(out.loss, head.leaves)
    assert relative_error(gradients, torch.autograd.grad(loss, head.exact)) < 1e-12


@given(
    st.integers(0, 40), st.integers(1, 130), st.integers(1, 17), st.integers(1, 9000), st.booleans(), st.booleans(),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16]), st.integers(0, 2**20),
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_any_shape(tokens, vocabulary, dim, chunk_bytes, bias, masked, dtype, seed):
    head = Head(
        tokens=tokens, vocabulary=vocabulary, dim=dim, dtype=dtype, bias=bias, seed=seed, masked=masked
    )  # fmt: skip
    out = head.dual_mode(chunk_bytes=chunk_bytes)
    loss, _ = head.truth()
    assert out.loss.item() == pytest.approx(loss.item(), rel=2e-4, abs=2e-4)
    gradients = torch.autograd.grad(out.loss, head.leaves)
    for ours, right in zip(gradients, torch.autograd.grad(loss, head.exact), strict=True):
        allowed = 2 * TOLERANCE[dtype] * float(right.abs().max() if right.numel() else 0) + 1e-5
        torch.testing.assert_close(ours.double(), right.double(), rtol=0, atol=allowed)


@pytest.mark.parametrize("function", ["dual_mode", "statistics", "token_loss"])
def test_gradcheck(function):
    head = Head(tokens=5, vocabulary=11, dim=3, dtype=torch.float64)

    def run(hidden, weight, bias):
        head.hidden, head.weight, head.bias = hidden, weight, bias
        if function == "dual_mode":  # no kinks of the clip
            return head.dual_mode(clip_low=1.0, clip_high=1e9, chunk_bytes=2 * 16 * 8).loss
        if function == "token_loss":
            return head.token_loss(lambda l, e, i: l * e - l.exp(), chunk_bytes=2 * 16 * 8).loss
        return head.statistics(chunk_bytes=2 * 16 * 8)

    assert torch.autograd.gradcheck(run, head.leaves)


def test_options_of_linear_token_loss_default_to_the_mean():
    head = Head(dtype=torch.float64)
    out = linear_token_loss(head.hidden, head.weight, head.targets, lambda l, e, i: -l, bias=head.bias, mask=head.mask)
    logprobs = head.statistics().logprobs
    assert out.loss.item() == pytest.approx((-logprobs.sum() / head.valid.sum()).item())
