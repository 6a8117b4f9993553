"""softcap and keep_mask of logprobs_and_entropy, and the masks of filtered sampling, on every backend."""

import pytest
import tiny
import torch
import truth
from transformers import GenerationConfig

from policy_split import logprobs_and_entropy, sampling_mask

INF, NAN = float("inf"), float("nan")


def example(seed, *shape, dtype=torch.float32, device="cpu", largest=None):
    """Normal logits, or uniform ones up to `largest`; targets; a keep mask that holds the targets."""
    generator = torch.Generator().manual_seed(seed)
    if largest is None:
        logits = torch.randn(shape, generator=generator) * 3
    else:
        logits = (torch.rand(shape, generator=generator) * 2 - 1) * largest
    targets = torch.randint(shape[-1], shape[:-1], generator=generator)
    keep = (torch.rand(shape, generator=generator) > 0.6).scatter(-1, targets[..., None], True)
    return logits.to(dtype).to(device), targets.to(device), keep.to(device)


def graded(logits, targets, upstream, **options):
    leaf = logits.detach().requires_grad_()
    logprobs, entropy = logprobs_and_entropy(leaf, targets, **options)
    upstream = [x.to(logprobs).view(targets.shape) for x in upstream]
    (gradient,) = torch.autograd.grad((logprobs, entropy), leaf, upstream)
    return logprobs.detach(), entropy.detach(), gradient


def check(logits, targets, *, temperature=1.0, mask=None, softcap=None, keep_mask=None):
    """Values and gradients of logits (..., V) against the truth on the same numbers; returns the gradient."""
    generator = torch.Generator().manual_seed(1)
    upstream = torch.randn(2, targets.numel(), generator=generator, dtype=torch.float64).to(logits.device)
    options = {"temperature": temperature, "mask": mask, "softcap": softcap, "keep_mask": keep_mask}
    logprobs, entropy, gradient = graded(logits, targets, upstream, **options)
    flat = logits.detach().double().reshape(-1, logits.shape[-1]).requires_grad_()
    keep = None if keep_mask is None else keep_mask.expand(logits.shape).reshape(flat.shape)
    valid = (targets != -100).reshape(-1) & (True if mask is None else mask.reshape(-1).bool())
    row_temperature = temperature.reshape(-1) if isinstance(temperature, torch.Tensor) else temperature
    expected = truth.statistics(flat, targets.clamp(min=0).reshape(-1), row_temperature, softcap, keep)
    expected = [torch.where(valid, x, 0.0) for x in expected]
    (true_gradient,) = torch.autograd.grad(expected, flat, list(upstream))
    # A temperature below 1 magnifies the rounding of x, of which softcap is the largest.
    size = 1.0 if softcap is None else 1 + softcap / torch.as_tensor(temperature).min().item() / 30
    tolerance = 1e-12 * size if logits.dtype == torch.float64 else 3e-6 * size
    for x, y in zip((logprobs, entropy), expected, strict=True):
        torch.testing.assert_close(x.reshape(-1).double(), y, rtol=tolerance, atol=tolerance)
    terms = upstream.abs().sum(0) * size / torch.as_tensor(temperature, device=logits.device).reshape(-1)
    truth.assert_gradient_close(gradient.reshape(flat.shape), true_gradient, logits.dtype, terms=terms)
    return gradient


@pytest.mark.parametrize("dtype", truth.DTYPES, ids=str)
@pytest.mark.parametrize("softcap", [1.0, 5.0, 30.0, 50.0])
def test_softcap(device, dtype, softcap):
    """Logits up to 200: from the straight middle of the tanh to where float32 and float64 have it flat."""
    logits, targets, _ = example(0, 3, 2053, dtype=dtype, device=device, largest=200.0)
    check(logits[:1] / 40, targets[:1], softcap=softcap, temperature=0.7)
    check(logits, targets, softcap=softcap, temperature=torch.tensor([0.5, 1.0, 2.0], device=device))


@pytest.mark.parametrize(("dtype", "softcap"), [(torch.float32, 30.0), (torch.float32, 1.0), (torch.float64, 30.0)])
def test_a_softcap_keeps_the_digits_of_small_logits(device, dtype, softcap):
    """At so low a temperature the log-prob of the smaller of (z, 0) is -|x| / T, and T is a power of two: x itself.

    Eager PyTorch is up to 1e-7 off; a tanh formed as 1 - 2 / (e^2t + 1) has no digit of 1e-8 left.
    """
    sizes = torch.logspace(-6, 2, 12, dtype=torch.float64)
    z = torch.cat((sizes, -sizes)).to(dtype).to(device)
    logits, targets = torch.stack((z, torch.zeros_like(z)), -1), (z > 0).long()
    x = -(2.0**-40) * logprobs_and_entropy(logits, targets, softcap=softcap, temperature=2.0**-40).logprobs.double()
    exact = softcap * torch.tanh(z.double().abs() / softcap)
    torch.testing.assert_close(x, exact, rtol=3e-7 if dtype == torch.float32 else 2e-15, atol=0)


@pytest.mark.parametrize("vocabulary", [9, 2053])
def test_infinite_logits_stay_infinite_under_a_softcap(device, vocabulary):
    """-inf cannot be drawn; +inf and NaN make their row NaN, and no other."""
    logits, targets, _ = example(0, 4, vocabulary, device=device)
    targets[:] = 1
    logits[0, 2::2] = -INF
    logits[1, 3] = INF
    logits[2, vocabulary - 1] = NAN
    logprobs, entropy, gradient = graded(logits, targets, torch.ones(2, 4), softcap=5.0)
    for x in (logprobs, entropy, gradient):
        assert x[1:3].isnan().all()
        assert x[::3].isfinite().all()
    assert (gradient[0, 2::2] == 0).all()
    check(logits[::3], targets[::3], softcap=5.0)
    logits[3] = -INF
    for x in graded(logits, targets, torch.ones(2, 4), softcap=5.0):
        assert x[3].isnan().all()


@pytest.mark.parametrize("dtype", truth.DTYPES, ids=str)
# 7: below one vector. 333: a partial last vector. 2053: two tiles.
@pytest.mark.parametrize(("vocabulary", "softcap"), [(7, None), (333, 5.0), (2053, None), (2053, 5.0)])
def test_keep_mask(device, dtype, vocabulary, softcap):
    logits, targets, keep = example(vocabulary, 2, 3, vocabulary, dtype=dtype, device=device)
    gradient = check(logits, targets, softcap=softcap, keep_mask=keep)
    assert (gradient[~keep] == 0).all()
    assert (gradient[keep] != 0).any()


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_keep_masks_of_every_layout(device, softcap):
    logits, targets, keep = example(0, 2, 3, 60, device=device)
    for name, mask, where in (
        ("of a vocabulary", keep[1, 2], targets[1, 2].expand(2, 3)),
        ("of a sequence", keep[:, 1:2], targets[:, 1:2].expand(2, 3)),
        ("of a position", keep[:1], targets[:1].expand(2, 3)),
        ("longer rows", torch.cat((keep, keep), -1)[..., :60], targets),
        ("every other", keep.repeat_interleave(2, -1)[..., ::2], targets),
        ("transposed", keep.transpose(0, 1).contiguous().transpose(0, 1), targets),
        ("more positions", torch.cat((keep, keep), 1)[:, :3], targets),
    ):
        gradient = check(logits, where, softcap=softcap, keep_mask=mask)
        assert not gradient[~mask.expand(2, 3, 60)].any(), name
    check(logits[:, :-1], targets[:, :-1], softcap=softcap, keep_mask=keep[:, :-1])
    check(logits[0, 0], targets[0, 0], softcap=softcap, keep_mask=keep[0, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_everything_together(device, dtype):
    """Rows of their own temperature, strided, filtered and capped, some of them masked, ignored, or full of NaN."""
    logits, targets, keep = example(0, 3, 5, 333, dtype=dtype, device=device, largest=20.0)
    temperature = torch.linspace(0.5, 2, 12, device=device).view(3, 4)
    mask = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 1], [1, 1, 1, 0]], device=device)
    targets[0, 0] = -100
    rows = {"softcap": 8.0, "temperature": temperature, "mask": mask, "keep_mask": keep[:, :-1]}
    gradient = check(logits[:, :-1], targets[:, :-1], **rows)
    ignored = (mask == 0) | (targets[:, :-1] == -100)
    assert (gradient[ignored] == 0).all()
    noisy = logits.clone()
    noisy[:, :-1][ignored] = NAN
    noisy.masked_fill_(~keep, NAN)
    ones = torch.ones(2, 12, device=device)
    actual, expected = (graded(x[:, :-1], targets[:, :-1], ones, **rows) for x in (noisy, logits))
    for x, y in zip(actual, expected, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize(("softcap", "vocabulary"), [(None, 2053), (5.0, 9), (5.0, 2053)])
@pytest.mark.parametrize("value", [NAN, INF, -INF, 3e38])
def test_what_is_filtered_is_not_seen(device, softcap, vocabulary, value):
    logits, targets, keep = example(0, 3, vocabulary, device=device)
    ones = torch.ones(2, 3, device=device)
    expected = graded(logits, targets, ones, softcap=softcap, keep_mask=keep)
    actual = graded(logits.masked_fill(~keep, value), targets, ones, softcap=softcap, keep_mask=keep)
    for x, y in zip(actual, expected, strict=True):
        assert torch.equal(x, y)
    assert (actual[2][~keep] == 0).all()


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("vocabulary", [9, 2053])
def test_a_filtered_target_and_a_filtered_row(device, softcap, vocabulary):
    """A target that is not kept: log-prob -inf, no gradient of its own. Nothing kept: NaN, as a row of -inf."""
    logits, targets, keep = example(0, 3, vocabulary, device=device)
    keep[0, targets[0]] = False
    keep[1] = False
    logprobs, entropy, gradient = graded(logits, targets, torch.ones(2, 3), softcap=softcap, keep_mask=keep)
    assert logprobs[0] == -INF
    for x in (logprobs, entropy, gradient):
        assert x[1].isnan().all()
        assert x[2].isfinite().all()
    exact = logits[::2].double().requires_grad_()
    expected = truth.statistics(exact, targets[::2], softcap=softcap, keep_mask=keep[::2])
    torch.testing.assert_close(entropy[::2].double(), expected[1], rtol=2e-6, atol=3e-6)
    (true_gradient,) = torch.autograd.grad(expected, exact, [torch.ones_like(expected[1])] * 2)
    torch.testing.assert_close(gradient[::2].double(), true_gradient, rtol=1e-5, atol=1e-6)
    assert (gradient[::2][~keep[::2]] == 0).all()


def test_gradcheck(backend, device):
    logits, targets, keep = example(0, 2, 5, dtype=torch.float64, device=device)
    temperature = torch.tensor([0.7, 1.3], device=device, dtype=torch.float64)
    options = {"softcap": 2.0, "keep_mask": keep, "temperature": temperature}
    fast = backend == "triton"  # its interpreter is slow
    assert torch.autograd.gradcheck(
        lambda z: logprobs_and_entropy(z, targets, **options), (logits.requires_grad_(),), fast_mode=fast
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_does_not_depend_on_its_batch(device, dtype):
    """Bitwise; and neither logits nor mask are changed."""
    logits, targets, keep = example(0, 5, 2053, dtype=dtype, device=device)
    kept = logits.clone(), keep.clone()
    whole = graded(logits, targets, torch.ones(2, 5), softcap=5.0, keep_mask=keep)
    for rows in (torch.tensor([3, 1, 4, 0, 2]), torch.tensor([4])):
        ones = torch.ones(2, len(rows))
        part = graded(logits[rows], targets[rows], ones, softcap=5.0, keep_mask=keep[rows])
        for x, y in zip(whole, part, strict=True):
            assert torch.equal(x[rows], y)
    assert torch.equal(logits, kept[0])
    assert torch.equal(keep, kept[1])


@pytest.mark.parametrize("backend", ["torch", "native"], indirect=True)
@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"softcap": 0.0}, ValueError, "softcap must be finite and > 0, or None, got 0.0"),
        ({"softcap": -30.0}, ValueError, "softcap must be finite and > 0"),
        ({"softcap": INF}, ValueError, "softcap must be finite and > 0"),
        ({"softcap": NAN}, ValueError, "softcap must be finite and > 0"),
        ({"keep_mask": torch.ones(2, 4)}, TypeError, "keep_mask must be a bool tensor, got torch.float32"),
        ({"keep_mask": [True]}, TypeError, "keep_mask must be a bool tensor, got list"),
        ({"keep_mask": torch.ones(2, 3).bool()}, ValueError, r"keep_mask has shape \(2, 3\); expected \(2, 4\)"),
        ({"keep_mask": torch.ones(1, 2, 4).bool()}, ValueError, r"keep_mask has shape \(1, 2, 4\)"),
        ({"keep_mask": torch.ones(2, 4, device="meta").bool()}, ValueError, "keep_mask is on meta, logits are on cpu"),
    ],
)
def test_bad_options(backend, options, error, words):
    with pytest.raises(error, match=words):
        logprobs_and_entropy(torch.zeros(2, 4), torch.zeros(2, dtype=torch.long), **options)


FILTERS = [
    {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.1}, {"top_k": 12, "top_p": 0.9}, {"top_p": 0.95, "min_p": 0.02},
    {"top_k": 15, "top_p": 0.9, "min_p": 0.05}, {"top_k": 1}, {},
]  # fmt: skip


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sampling_mask_is_that_of_generate(filters, temperature, dtype):
    """More rows than are sorted at once; and in bfloat16 many ties, of which top_k keeps all."""
    logits, _, _ = example(0, 3, 700, 23, dtype=dtype)
    config = GenerationConfig(do_sample=True, temperature=temperature, **{"top_k": 0, **filters})
    model = tiny.model()
    model._prepare_special_tokens(config, kwargs_has_attention_mask=True)
    processors = model._get_logits_processor(config, input_ids_seq_length=1, device="cpu")
    assert len(processors) == len(filters) + (temperature != 1)
    scores = processors(None, logits.float().view(-1, 23)).view(logits.shape)
    mask = sampling_mask(logits, temperature=temperature, **filters)
    assert torch.equal(mask, scores > -INF)
    assert mask.any(-1).all()
    assert mask.all() == (not filters)
    expected = torch.log_softmax(scores.double(), -1)
    targets = expected.argmax(-1)
    logprobs = logprobs_and_entropy(logits, targets, temperature=temperature, keep_mask=mask).logprobs
    torch.testing.assert_close(logprobs.double(), expected.amax(-1), rtol=1e-6, atol=2e-6)


def test_sampled_tokens_are_as_frequent_as_their_log_probs_say(device):
    """20,000 first tokens of one prompt, from `generate` itself: within five standard deviations each."""
    torch.manual_seed(0)
    model, count = tiny.model(), 20_000
    filters = {"temperature": 0.8, "top_k": 9, "top_p": 0.9}
    prompt = torch.tensor([[1, 9, 11]])
    tokens = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=True, max_new_tokens=1, num_return_sequences=count,
        **filters,
    )[:, -1]  # fmt: skip
    with torch.no_grad():
        logits = model(prompt).logits[:, -1].expand(len(tiny.WORDS), -1)
    every = torch.arange(len(tiny.WORDS))
    keep = sampling_mask(logits, **filters)
    arguments = (x.to(device) for x in (logits, every))
    p = logprobs_and_entropy(*arguments, temperature=0.8, keep_mask=keep.to(device)).logprobs.exp().double().cpu()
    frequency = torch.bincount(tokens, minlength=len(every)) / count
    assert 3 <= keep[0].sum() <= 9
    assert p.sum().item() == pytest.approx(1, abs=1e-6)
    assert ((frequency - p).abs() <= 5 * (p * (1 - p) / count).sqrt()).all()  # 0 for the filtered: never drawn
