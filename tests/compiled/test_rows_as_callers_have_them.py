"""Rows as callers have them: strided, unaligned, masked, with -inf and NaN, capped, overwritten in place."""

import compiled_calls as calls
import pytest
import torch

from policy_split import logprobs_and_entropy

INF = float("inf")
VOCABULARY = 2053
STATISTICS = ["logprobs_entropy_kernel", "logprobs_entropy_gradient_kernel"]
LOSS = ["dual_mode_loss_kernel", "scale_rows_kernel"]
IN_BACKWARD = ["dual_mode_loss_kernel", "logprobs_entropy_gradient_kernel"]  # bfloat16 in place, rounded once
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)


def sliced(vocabulary, dtype, shift, shape=(2, 3)):
    """(whole, its part (2, 3, V)): NaN lies before, after and between the rows; a shift of 3 is never aligned."""
    batch, length = shape
    logits, targets = calls.random_rows(batch * length, vocabulary, dtype)
    whole = torch.full((batch, length + 2, vocabulary + 2 * shift), torch.nan, device="cuda", dtype=dtype)
    whole[:, 1:-1, shift : shift + vocabulary] = logits.reshape(*shape, vocabulary)
    return whole, targets.reshape(shape), (slice(None), slice(1, -1), slice(shift, shift + vocabulary))


@DTYPES
@pytest.mark.parametrize(("vocabulary", "shift"), [(VOCABULARY, 3), (2048, 3), (2048, 8)])
def test_strided_rows(launches, vocabulary, dtype, shift):
    whole, targets, part = sliced(vocabulary, dtype, shift)
    calls.check_statistics(whole[part], targets)
    other = whole.flip(0)[part]
    calls.check_divergence(whole[part], other)
    assert launches() == [*STATISTICS, "divergence_kernel", "divergence_gradient_kernel"]


@DTYPES
@pytest.mark.parametrize(("vocabulary", "shift"), [(VOCABULARY, 3), (2048, 8)])
def test_the_gradient_in_place_of_strided_rows_touches_nothing_else(launches, vocabulary, dtype, shift):
    whole, targets, part = sliced(vocabulary, dtype, shift)
    leaf = whole.requires_grad_()
    computed = leaf * 1.0
    rows = computed[part]
    tokens = calls.loss_tokens(rows, targets)
    calls.check_loss(rows, targets, tokens, upstream=-4.0, inplace_of=leaf)
    assert launches() == (IN_BACKWARD if dtype == torch.bfloat16 else LOSS)
    around = computed.detach().clone()
    around[part] = torch.nan
    assert around.isnan().all()


def test_several_rows_of_each_program(launches):
    """Nine rows for the two programs of a small machine; some of them do not count."""
    logits, targets = calls.random_rows(9, 515, torch.float32)
    targets[4] = -100
    mask = torch.tensor([1, 1, 0, 1, 1, 0, 1, 1, 1], device="cuda")
    logits[mask == 0] = torch.nan  # not read
    calls.check_loss(logits, targets, calls.loss_tokens(logits, targets, mask), mask=mask, upstream=2.0)
    assert launches() == LOSS


@DTYPES
def test_masked_rows_hold_anything(launches, dtype):
    logits, targets = calls.random_rows(5, 515, dtype)
    targets[1] = -100
    mask = torch.tensor([1, 1, 0, 1, 0], dtype=torch.bool, device="cuda")
    logits[1:3] = torch.nan
    calls.check_statistics(logits, targets, mask=mask)
    calls.check_divergence(logits, calls.random_rows(5, 515, dtype, seed=9)[0], mask=mask & (targets != -100))
    assert launches() == [*STATISTICS, "divergence_kernel", "divergence_gradient_kernel"]


@pytest.mark.parametrize("temperature", [0.7, "row"])
def test_minus_infinity_anywhere_but_at_the_target(launches, temperature):
    """A whole leading tile, scattered elements, all but the target."""
    logits, targets = calls.random_rows(3, 5003, torch.bfloat16)
    kept = torch.rand(logits.shape, generator=torch.Generator().manual_seed(0)) > 0.5
    kept[0, :4500], kept[2] = False, False
    kept[torch.arange(3), targets] = True
    logits = logits.masked_fill(~kept, -INF)
    if temperature == "row":
        temperature = torch.tensor([0.5, 1.0, 2.0], device="cuda")
    calls.check_statistics(logits, targets, temperature=temperature)
    pair = logits.masked_fill(~kept, -INF), (logits * 0.5).masked_fill(~kept, -INF)
    calls.check_divergence(*pair, temperature=temperature)
    assert launches() == [*STATISTICS, "divergence_kernel", "divergence_gradient_kernel"]


@pytest.mark.parametrize("offset", [1e4, -1e4])
def test_a_common_offset_changes_nothing(launches, offset):
    """Multiples of 1/32 stay exact under it: what is left is the rounding of an fma, which is one only if compiled."""
    logits, targets = calls.random_rows(3, VOCABULARY, torch.float32)
    logits = logits.mul(32).round().div(32) + offset
    calls.check_statistics(logits, targets)
    calls.check_loss(logits, targets, calls.loss_tokens(logits, targets))
    calls.check_divergence(logits, logits.flip(0))
    assert launches() == [*STATISTICS, *LOSS, "divergence_kernel", "divergence_gradient_kernel"]


def test_rows_without_a_distribution_are_nan_and_no_fault(launches):
    """All -inf, NaN, +inf, a target outside of the vocabulary: each its own row's concern."""
    logits, targets = calls.random_rows(5, 515, torch.float32)
    logits[0], logits[1, 7], logits[2, 9], targets[3] = -INF, torch.nan, INF, 515
    leaf = logits.requires_grad_()
    out = logprobs_and_entropy(leaf, targets)
    (gradient,) = torch.autograd.grad((out.logprobs + out.entropy).sum(), leaf)
    for x in (out.logprobs, out.entropy, gradient.sum(-1)):
        assert x.isnan().tolist() == [True, True, True, True, False]
    assert launches() == STATISTICS


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", ["softcap", "keep_mask", "keep_mask of all rows", "both"])
def test_what_is_done_to_the_logits_first(launches, name, inplace):
    logits, targets = calls.random_rows(3, 1032, torch.bfloat16, scale=9.0)
    keep = torch.rand(logits.shape, generator=torch.Generator().manual_seed(0)).to("cuda") > 0.4
    keep[:, targets] = True
    options = {} if name.startswith("keep") else {"softcap": 5.0}
    if name != "softcap":
        options["keep_mask"] = keep[1] if name.endswith("rows") else keep
    calls.check_statistics(logits, targets, **options)
    tokens = calls.loss_tokens(logits, targets, **options)
    rows = logits.requires_grad_() * 1.0 if inplace else logits
    calls.check_loss(rows, targets, tokens, upstream=0.5, inplace_of=logits if inplace else None, **options)
    assert launches() == [*STATISTICS, *(IN_BACKWARD if inplace else LOSS)]


SETTINGS = {
    "on policy": (("ref_logprobs", "weights"), {"clip_high": 0.28}),
    "clip_delta": (("old_logprobs", "weights"), {"clip_low": 0.1, "clip_delta": 1.4}),
    "a foreign sampler": (("old_logprobs", "sampler_logprobs", "weights"), {"sampler_cap": 0.9, "clip_high": 0.28}),
    "cispo": (("old_logprobs", "weights"), {"surrogate": "cispo", "clip_high": 0.28}),
    "sapo": (("old_logprobs", "weights"), {"surrogate": "sapo"}),
    "the corrected kl": (("old_logprobs", "ref_logprobs", "weights"), {"use_bias_correction_kl": True, "kl_cap": 0.1}),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_loss_of_every_setting(launches, name):
    wanted, settings = SETTINGS[name]
    logits, targets = calls.random_rows(6, 259, torch.float32)
    tokens = calls.loss_tokens(logits, targets)
    tokens = {key: x for key, x in tokens.items() if key in (*wanted, "advantages", "mode")}
    calls.check_loss(logits, targets, tokens, upstream=-2.0, settings=settings)
    assert launches() == LOSS


@pytest.mark.parametrize("vocabulary", [1, 2, 3])
def test_vocabularies_smaller_than_a_warp(launches, vocabulary):
    logits, targets = calls.random_rows(3, vocabulary, torch.bfloat16)
    calls.check_statistics(logits, targets)
    calls.check_divergence(logits, calls.random_rows(3, vocabulary, torch.bfloat16, seed=5)[0])
    assert len(launches()) == 4


def test_no_row_launches_nothing(launches):
    logits, targets = calls.random_rows(0, 11, torch.float32)
    calls.check_statistics(logits, targets)
    assert launches() == []
