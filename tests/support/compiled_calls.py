"""Calls of the public functions on "cuda" tensors, values and gradients against float64 (`truth`).

Rows that do not count are left out of the truth, and have to be 0.
"""

import formulas
import torch
import truth

from policy_split import dual_mode_loss, jensen_shannon_divergence, logprobs_and_entropy, mode_divergence

FLOOR = {torch.float64: 1e-12, torch.float32: 2e-6}  # of the statistics dtype
COEFFICIENTS = {"entropy_coef": (0.1, -0.2), "kl_coef": (0.05, 0.3)}


def random_rows(n, vocabulary, dtype, *, seed=0, scale=3.0):
    """logits (n, V), targets (n,)"""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, vocabulary, generator=generator) * scale
    targets = torch.randint(vocabulary, (n,), generator=generator)
    return logits.to("cuda", dtype), targets.to("cuda")


def statistics_dtype(logits):
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def numbers(logits, count, seed=1):
    """`count` random numbers for each row."""
    generator = torch.Generator().manual_seed(seed)
    shape = logits.shape[:-1]
    return [torch.randn(shape, generator=generator).to("cuda", statistics_dtype(logits)) for _ in range(count)]


def valid_rows(targets, mask):
    counted = targets != -100
    return (counted if mask is None else counted & (mask != 0)).reshape(-1)


def exact_rows(logits, valid):
    """The rows that count, in float64 and on their own."""
    return logits.detach().reshape(-1, logits.shape[-1])[valid].double().requires_grad_()


def of_rows(options, logits, valid):
    """Options of the rows that count."""
    rows = dict(options)
    if isinstance(rows.get("temperature"), torch.Tensor):
        rows["temperature"] = rows["temperature"].reshape(-1)[valid].double()
    if rows.get("keep_mask") is not None:
        rows["keep_mask"] = rows["keep_mask"].expand(logits.shape).reshape(-1, logits.shape[-1])[valid]
    return rows


def assert_values(actual, expected, valid):
    actual = actual.detach().reshape(-1)
    assert (actual[~valid] == 0).all()
    floor = FLOOR[actual.dtype]
    torch.testing.assert_close(actual[valid].double(), expected.detach(), rtol=floor, atol=4 * floor, equal_nan=True)


def assert_gradient(gradient, expected, valid, terms):
    rows = gradient.reshape(-1, gradient.shape[-1])
    assert (rows[~valid] == 0).all()
    truth.assert_gradient_close(rows[valid], expected, gradient.dtype, terms)


def check_statistics(logits, targets, *, mask=None, **options):
    leaf = logits.detach().requires_grad_()
    out = logprobs_and_entropy(leaf, targets, mask=mask, **options)
    upstream = numbers(logits, 2)
    (gradient,) = torch.autograd.grad(out, leaf, upstream)
    valid = valid_rows(targets, mask)
    exact = exact_rows(logits, valid)
    expected = truth.statistics(exact, targets.reshape(-1)[valid], **of_rows(options, logits, valid))
    for actual, right in zip(out, expected, strict=True):
        assert_values(actual, right, valid)
    upstream = [x.reshape(-1)[valid].double() for x in upstream]
    (true_gradient,) = torch.autograd.grad(expected, exact, upstream)
    sizes = upstream[0].abs() + upstream[1].abs() * (1 + expected[1].detach())
    assert_gradient(gradient, true_gradient, valid, sizes)


def check_divergence(logits_a, logits_b, *, mask=None, **options):
    leaves = [x.detach().requires_grad_() for x in (logits_a, logits_b)]
    out = mode_divergence(*leaves, mask=mask, **options)
    upstream = numbers(logits_a, 4)
    gradients = torch.autograd.grad(out, leaves, upstream)
    valid = valid_rows(torch.zeros(logits_a.shape[:-1]), mask)
    exact = [exact_rows(x, valid) for x in (logits_a, logits_b)]
    expected = truth.divergence(*exact, **of_rows(options, logits_a, valid))
    for actual, right in zip(out, expected, strict=True):
        assert_values(actual, right, valid)
    upstream = [x.reshape(-1)[valid].double() for x in upstream]
    size = sum(x.abs() * (1 + right.detach().abs()) for x, right in zip(upstream, expected, strict=True))
    for gradient, right in zip(gradients, torch.autograd.grad(expected, exact, upstream), strict=True):
        assert_gradient(gradient, right, valid, size)


def check_jensen_shannon(logits_a, logits_b, *, beta=0.3, mask=None, **options):
    leaves = [x.detach().requires_grad_() for x in (logits_a, logits_b)]
    out = jensen_shannon_divergence(*leaves, beta=beta, mask=mask, **options)
    (upstream,) = numbers(logits_a, 1)
    gradients = torch.autograd.grad(out, leaves, upstream)
    valid = valid_rows(torch.zeros(logits_a.shape[:-1]), mask)
    exact = [exact_rows(x, valid) for x in (logits_a, logits_b)]
    expected = truth.jensen_shannon(*exact, beta, **of_rows(options, logits_a, valid))
    assert_values(out, expected, valid)
    upstream = upstream.reshape(-1)[valid].double()
    true_gradients = torch.autograd.grad(expected, exact, upstream)
    for gradient, right in zip(gradients, true_gradients, strict=True):
        assert_gradient(gradient, right, valid, upstream.abs() * (1 + expected.detach()))


def loss_tokens(logits, targets, mask=None, **options):
    """Per-token arguments whose ratios lie inside and outside of the clip range."""
    valid = valid_rows(targets, mask)
    exact = exact_rows(logits, valid)
    logprobs = torch.zeros(valid.shape, dtype=torch.float64)
    logprobs[valid] = truth.statistics(
        exact.detach(), targets.reshape(-1)[valid], **of_rows(options, logits, valid)
    )[0]  # fmt: skip
    logprobs = logprobs.nan_to_num(neginf=-3.0).reshape(targets.shape)
    advantages, old, ref, sampler, weights = (x.double() for x in numbers(logits, 5))
    tokens = {
        "advantages": advantages,
        "old_logprobs": logprobs + 0.3 * old,
        "ref_logprobs": logprobs + 0.3 * ref,
        "sampler_logprobs": logprobs + 0.3 * sampler,
        "weights": weights.abs(),
    }
    tokens = {name: x.to("cuda", statistics_dtype(logits)) for name, x in tokens.items()}
    return tokens | {"mode": torch.arange(targets.numel(), device="cuda").reshape(targets.shape) % 2}


def check_loss(logits, targets, tokens, *, upstream=1.0, mask=None, inplace_of=None, settings=None, **options):
    """With `inplace_of`, the leaf that the logits were computed from, they become their gradient."""
    settings = COEFFICIENTS | ({"clip_high": 0.28} if settings is None else settings)
    valid = valid_rows(targets, mask)
    exact = exact_rows(logits, valid)
    inplace = inplace_of is not None
    computed = logits if inplace else logits.detach().requires_grad_()
    out = dual_mode_loss(
        computed, targets, mask=mask, inplace_gradient=inplace, **tokens, **settings, **options
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(out.loss * upstream, inplace_of if inplace else computed)
    if inplace:
        gradient = logits.detach()
    flat = {name: x.reshape(-1)[valid] for name, x in tokens.items()}
    flat = {name: x.double() if x.is_floating_point() else x for name, x in flat.items()}
    targets, options = targets.reshape(-1)[valid], of_rows(options, logits, valid)
    expected = formulas.loss(exact, targets, **flat, **settings, **options)[0].sum()
    floor = FLOOR[out.loss.dtype] * len(exact)
    torch.testing.assert_close(out.loss.detach().double(), expected.detach(), rtol=10 * floor, atol=10 * floor)
    (true_gradient,) = torch.autograd.grad(expected * upstream, exact)
    sizes = flat["weights"] * (4 * flat["advantages"].abs() + 4) * abs(upstream)
    assert_gradient(gradient, true_gradient, valid, sizes)
