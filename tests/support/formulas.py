"""The formulas of the public docstrings in PyTorch's own operations, at any precision.

In float64 they are the truth; in the statistics dtype they are the eager rival whose error is the measure of ours.
Everything is flat: logits (N, V), vectors (N,). Rows that do not count are cut out before anything is computed.
"""

import math

import torch


def log_softmax(logits, dtype, *, temperature=1.0, softcap=None, keep_mask=None):
    x = logits.to(dtype)
    if softcap is not None:
        x = torch.where(x.isinf(), x.detach(), softcap * torch.tanh(x / softcap))
    if keep_mask is not None:
        x = x.masked_fill(~keep_mask, -torch.inf)
    if dtype == torch.float64:  # the truth keeps the digits that a division of large logits loses
        x = x - x.detach().amax(-1, keepdim=True)
    return torch.log_softmax(x / torch.as_tensor(temperature, dtype=dtype, device=x.device).reshape(-1, 1), -1)


def entropy_of(log_p):
    return -(log_p.exp() * torch.where(log_p == -torch.inf, 0.0, log_p)).sum(-1)


def statistics(logits, targets, *, valid=None, dtype=torch.float64, **options):
    """(logprobs, entropy), 0 in rows that do not count."""
    valid = torch.ones_like(targets, dtype=torch.bool) if valid is None else valid
    log_p = log_softmax(torch.where(valid[:, None], logits, 0.0), dtype, **options)
    logprobs = log_p.gather(-1, torch.where(valid, targets, 0)[:, None])[:, 0]
    return torch.where(valid, logprobs, 0.0), torch.where(valid, entropy_of(log_p), 0.0)


def divergence(logits_a, logits_b, *, valid=None, dtype=torch.float64, temperature=1.0):
    """(kl_ab, kl_ba, entropy_a, entropy_b); a token that neither row can draw adds nothing."""
    valid = torch.ones_like(logits_a[:, 0], dtype=torch.bool) if valid is None else valid
    a, b = (
        log_softmax(torch.where(valid[:, None], x, 0.0), dtype, temperature=temperature) for x in (logits_a, logits_b)
    )
    gap = torch.where((a == -torch.inf) & (b == -torch.inf), 0.0, a - b)
    rows = ((a.exp() * gap).sum(-1), -(b.exp() * gap).sum(-1), entropy_of(a), entropy_of(b))
    return tuple(torch.where(valid, x, 0.0) for x in rows)


def jensen_shannon(logits_a, logits_b, *, beta, valid=None, dtype=torch.float64, temperature=1.0):
    """Of each pair of rows, by p * (log p - log m) as it is written; beta 0 and 1 are KL(q || p) and KL(p || q)."""
    if beta in (0, 1):
        return divergence(logits_a, logits_b, valid=valid, dtype=dtype, temperature=temperature)[0 if beta else 1]
    valid = torch.ones_like(logits_a[:, 0], dtype=torch.bool) if valid is None else valid
    a, b = (
        log_softmax(torch.where(valid[:, None], x, 0.0), dtype, temperature=temperature) for x in (logits_a, logits_b)
    )
    neither = (a == -torch.inf) & (b == -torch.inf)
    m = torch.logaddexp(*(x.masked_fill(neither, 0.0) + math.log(w) for x, w in ((a, 1 - beta), (b, beta))))

    def kl(own):
        never = own == -torch.inf
        gap = own.masked_fill(never, 0.0) - m.masked_fill(never, 0.0)
        return (own.exp() * gap).sum(-1)

    return torch.where(valid, (1 - beta) * kl(a) + beta * kl(b), 0.0)


def surrogate_loss(
    logprobs, advantages, *, valid, rows_per_sequence, old_logprobs=None, sampler_logprobs=None,
    surrogate="clip", ratio_level="token", clip_low=0.2, clip_high=0.2, clip_delta=None, sampler_cap=2.0,
    sapo_temperature=(1.0, 1.05), vespo_k=(2.0, 3.0), vespo_lambda=(3.0, 2.0),
):  # fmt: skip
    """(objective, clipped) of the policy gradient."""
    old = logprobs.detach() if old_logprobs is None else old_logprobs
    log_ratio = logprobs - old
    if surrogate == "vespo":
        weight = log_ratio.detach()
        if sampler_logprobs is not None:
            weight = weight + (old.detach() - sampler_logprobs).exp().clamp(max=sampler_cap).log()
        shape = (-1, max(1, rows_per_sequence))
        total = torch.where(valid, weight, 0.0).view(shape).sum(-1, keepdim=True).expand(shape).reshape(-1)
        k, scale = (_by_sign(advantages >= 0, pair, advantages) for pair in (vespo_k, vespo_lambda))
        phi = (k * total + scale * (1 - total.exp())).exp()
        return phi * advantages * logprobs, torch.zeros_like(valid)
    if ratio_level == "sequence":
        shape = (-1, rows_per_sequence)
        counted = torch.where(valid, log_ratio, 0.0).view(shape).sum(-1, keepdim=True)
        mean = counted / valid.view(shape).sum(-1, keepdim=True).clamp(min=1)
        log_ratio = mean.expand(shape).reshape(-1) if rows_per_sequence else log_ratio
    ratio = log_ratio.exp()
    if sampler_logprobs is not None:
        advantages = advantages * (old.detach() - sampler_logprobs).exp().clamp(max=sampler_cap)
    if surrogate == "sapo":
        temperature = _by_sign(advantages > 0, sapo_temperature, advantages)
        return 4 / temperature * torch.sigmoid(temperature * (ratio - 1)) * advantages, torch.zeros_like(valid)
    # By comparison: the derivatives of clamp and min where two numbers are equal differ between versions of PyTorch.
    bounded = ratio if clip_delta is None else torch.where((advantages < 0) & (ratio > clip_delta), clip_delta, ratio)
    clip_ratio = torch.where(ratio < 1 - clip_low, 1 - clip_low, ratio)
    clip_ratio = torch.where(ratio > 1 + clip_high, 1 + clip_high, clip_ratio)
    if surrogate == "cispo":
        return clip_ratio.detach() * advantages * logprobs, clip_ratio * advantages < ratio * advantages
    lower = clip_ratio * advantages < bounded * advantages
    return torch.where(lower, clip_ratio * advantages, bounded * advantages), lower | (bounded < ratio)


def _by_sign(positive, pair, like):
    return torch.where(positive, *(torch.full_like(like, x) for x in pair))


def kl_estimate(logprobs, ref_logprobs, old_logprobs, use_bias_correction_kl=False, kl_cap=None):
    """k3, times the token's ratio, bounded."""
    kl = torch.expm1(ref_logprobs - logprobs) - (ref_logprobs - logprobs)
    if use_bias_correction_kl:
        kl = kl * (logprobs - (logprobs.detach() if old_logprobs is None else old_logprobs)).exp()
    return kl if kl_cap is None else kl.clamp(max=kl_cap)


def loss(
    logits, targets, *, advantages, mode, weights, entropy_coef=(0.0, 0.0), kl_coef=(0.0, 0.0), ref_logprobs=None,
    valid=None, rows_per_sequence=1, temperature=1.0, softcap=None, keep_mask=None, dtype=torch.float64,
    use_bias_correction_kl=False, kl_cap=None, **policy,
):  # fmt: skip
    """(losses, logprobs, entropy, kl, clipped), 0 in rows that do not count."""
    valid = torch.ones_like(targets, dtype=torch.bool) if valid is None else valid
    options = {"temperature": temperature, "softcap": softcap, "keep_mask": keep_mask}
    logprobs, entropy = statistics(logits, targets, valid=valid, dtype=dtype, **options)
    objective, clipped = surrogate_loss(
        logprobs, advantages, valid=valid, rows_per_sequence=rows_per_sequence, **policy
    )  # fmt: skip
    kl = torch.zeros_like(logprobs)
    if ref_logprobs is not None:
        kl = kl_estimate(logprobs, ref_logprobs, policy.get("old_logprobs"), use_bias_correction_kl, kl_cap)
    coef_h, coef_k = (torch.tensor(x, dtype=dtype, device=logits.device)[mode] for x in (entropy_coef, kl_coef))
    losses = weights * (-objective - coef_h * entropy + coef_k * kl)
    return (*(torch.where(valid, x, 0.0) for x in (losses, logprobs, entropy, kl)), clipped & valid)
