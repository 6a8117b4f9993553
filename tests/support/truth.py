"""What is right, in float64 and in PyTorch's own operations, written without a look at the package's reference."""

import os
from importlib.metadata import version

import torch

from policy_split import get_backend

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# Rounding of the result: gradients are stored in the logits' dtype, statistics in float32 (float64 for float64).
GRADIENT_RTOL = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}


def triton_before(*release):
    """Whether the installed Triton is older than a release, as triton_before(3, 9)."""
    return tuple(map(int, version("triton").split(".")[:2])) < release


def offset_slack(offset, dtype=torch.float32):
    """How far, relative and absolute, a common offset may move results of the chosen backend; compiled, not at all.

    An fma of Triton's interpreter rounds its product before 3.9, too. tests/compiled has offsets of compiled kernels.
    """
    interpreted = get_backend() == "triton" and not torch.cuda.is_available()
    return 2 * abs(offset) * torch.finfo(dtype).eps if interpreted and triton_before(3, 9) else 0.0


def statistics(logits, targets, temperature=1.0, softcap=None, keep_mask=None):
    """(logprobs, entropy) of float64 logits (N, V), differentiable; -inf logits allowed."""
    temperature = torch.as_tensor(temperature, dtype=torch.float64, device=logits.device)
    if softcap is not None:
        logits = torch.where(logits.isinf(), logits, softcap * torch.tanh(logits / softcap))
    if keep_mask is not None:
        logits = logits.masked_fill(~keep_mask, -torch.inf)
    log_p = torch.log_softmax(logits / temperature.reshape(-1, 1), -1)
    logprobs = log_p.gather(-1, targets[:, None]).squeeze(-1)
    finite = torch.where(log_p == -torch.inf, 0.0, log_p)
    return logprobs, -(log_p.exp() * finite).sum(-1)


def divergence(logits_a, logits_b, temperature=1.0):
    """(kl_ab, kl_ba, entropy_a, entropy_b) of two matrices (N, V), in their dtype, differentiable.

    A token that the averaging row cannot draw adds nothing, and no gradient.
    """
    temperature = torch.as_tensor(temperature, dtype=logits_a.dtype, device=logits_a.device).reshape(-1, 1)
    a, b = (torch.log_softmax(x / temperature, -1) for x in (logits_a, logits_b))

    def mean(own, gap):
        return (own.exp() * gap.masked_fill(own == -torch.inf, 0.0)).sum(-1)

    def gap(own, other):
        never = own == -torch.inf
        return own.masked_fill(never, 0.0) - other.masked_fill(never, 0.0)

    return mean(a, gap(a, b)), mean(b, gap(b, a)), -mean(a, a), -mean(b, b)


def jensen_shannon(logits_a, logits_b, beta, temperature=1.0):
    """(1 - beta) KL(p || m) + beta KL(q || m) of two matrices (N, V), 0 < beta < 1, in their dtype, differentiable."""
    temperature = torch.as_tensor(temperature, dtype=logits_a.dtype, device=logits_a.device).reshape(-1, 1)
    p, q = (torch.softmax(x / temperature, -1) for x in (logits_a, logits_b))
    m = (1 - beta) * p + beta * q
    return sum(
        w * (torch.special.xlogy(x, x) - torch.special.xlogy(x, m)).sum(-1) for w, x in ((1 - beta, p), (beta, q))
    )


def loss(logits, targets, *, advantages, mode, old_logprobs=None, ref_logprobs=None, sampler_logprobs=None, weights,
         entropy_coef, kl_coef, temperature=1.0, softcap=None, keep_mask=None, surrogate="clip", clip_low=0.2,
         clip_high=0.2, clip_delta=None, sampler_cap=2.0, sequences=None):  # fmt: skip
    """Scalar loss of float64 logits (N, V) by the formula of the docstring, differentiable.

    `sequences (B, T)` bool, the valid tokens of N = B * T: the ratio is that of a sequence.
    """
    l, entropy = statistics(logits, targets, temperature, softcap, keep_mask)
    old = l.detach() if old_logprobs is None else old_logprobs
    log_ratio = l - old
    if sequences is not None:
        rows = [row[kept].sum() / kept.sum().clamp(min=1) for row, kept in
                zip(log_ratio.view(sequences.shape), sequences, strict=True)]  # fmt: skip
        log_ratio = torch.stack(rows).repeat_interleave(sequences.shape[1])
    ratio = log_ratio.exp()
    if sampler_logprobs is not None:
        advantages = advantages * (old - sampler_logprobs).exp().clamp(max=sampler_cap)
    # By comparison: at a ratio on its bound the derivative is that of the ratio; clamp's changed with PyTorch 2.14.
    clip_ratio = torch.where(
        ratio < 1 - clip_low, 1 - clip_low, torch.where(ratio > 1 + clip_high, 1 + clip_high, ratio)
    )
    if surrogate == "cispo":
        objective = clip_ratio.detach() * advantages * l
    else:
        capped = (advantages < 0) & (ratio > (torch.inf if clip_delta is None else clip_delta))
        bounded = torch.where(capped, clip_delta or 0.0, ratio)
        lower = clip_ratio * advantages < bounded * advantages
        objective = torch.where(lower, clip_ratio, bounded) * advantages
    kl = 0.0
    if ref_logprobs is not None:
        kl = (ref_logprobs - l).exp() - (ref_logprobs - l) - 1
    coef_h = torch.tensor(entropy_coef, dtype=torch.float64, device=logits.device)[mode]
    coef_k = torch.tensor(kl_coef, dtype=torch.float64, device=logits.device)[mode]
    return (weights * (-objective - coef_h * entropy + coef_k * kl)).sum()


def assert_gradient_close(actual, expected, dtype, terms=0.0):
    """Each element to the rounding of its dtype, and of float32 relative to the row's largest element or `terms` (N,),
    the size of what cancelled in it."""
    actual, expected = actual.double(), expected.double()
    scale = expected.abs().amax(-1, keepdim=True) + torch.as_tensor(terms, device=actual.device).reshape(-1, 1)
    slack = 1e-13 if dtype == torch.float64 else 1e-6
    smallest = 6e-8 if dtype == torch.float16 else 0.0
    rtol = GRADIENT_RTOL[dtype]
    if dtype == torch.bfloat16 and get_backend() == "triton" and os.environ.get("TRITON_INTERPRET") == "1":
        rtol *= 2  # Triton's interpreter cuts bfloat16 off where the hardware rounds
    bound = rtol * expected.abs() + slack * scale + smallest
    wrong = ~((actual - expected).abs() <= bound)
    worst = ((actual - expected).abs() / bound).nan_to_num(nan=torch.inf).max() if wrong.any() else 0
    assert not wrong.any(), (
        f"{int(wrong.sum())} of {wrong.numel()} gradients are off, worst {worst:.1f} times the bound"
    )


def assert_as_exact_as_eager(actual, eager, exact, floor):
    """The three-way rule: on average over the rows, at most twice the error of PyTorch in float32, or `floor`."""
    ours, theirs = ((x.double() - exact).abs().mean() for x in (actual, eager))
    assert ours <= 2 * theirs + floor, f"error {ours:.2e}, of eager float32 {theirs:.2e}, allowed on top {floor:.0e}"
