"""GPU: the scalar mathematics of one row's loss, between its statistics and its gradient (device functions)."""

import triton
import triton.language as tl

SERIES_TERMS = tl.constexpr(19)  # of exp on [-1, 1], to 1e-17


@triton.jit
def k3(x):
    """exp(x) - x - 1 and its derivative exp(x) - 1, by the series near 0, where the differences would cancel."""
    near = tl.where(tl.abs(x) < 1, x, 0.0)
    series = near * 0 + 1
    for k in tl.static_range(SERIES_TERMS, 2, -1):
        series = 1 + series * near * (1.0 / k)
    near_value = near * near * 0.5 * series
    grown = tl.exp(x) - 1
    return tl.where(near == x, near_value, grown - x), tl.where(near == x, near + near_value, grown)


@triton.jit
def _scaled(coef, x):
    """coef * x, 0 where the coefficient is 0 even if x is infinite."""
    return tl.where(coef == 0, 0.0, coef * x)


@triton.jit
def _soft_gate(ratio, temperature):
    """`reference.loss.soft_gate`."""
    x = temperature * (ratio - 1)
    gate = 1 / (1 + tl.exp(-x))
    return 4 / temperature * gate, 4 * _scaled(gate / (1 + tl.exp(x)), ratio)


@triton.jit
def _policy_objective(
    ratio, logprob, advantage, clip_low, clip_high, clip_delta, sapo_positive, sapo_negative, SURROGATE: tl.constexpr
):
    """`reference.loss.policy_objective` -> objective, its derivative by the log of the ratio, clipped."""
    dtype: tl.constexpr = ratio.dtype
    lower = tl.full((), 1.0 - clip_low, dtype)
    upper = tl.full((), 1.0 + clip_high, dtype)
    clip_ratio = tl.where(ratio < lower, lower, ratio)
    clip_ratio = tl.where(clip_ratio > upper, upper, clip_ratio)
    if SURROGATE == "sapo":
        positive = tl.full((), sapo_positive, dtype)
        gate, slope = _soft_gate(ratio, tl.where(advantage > 0, positive, tl.full((), sapo_negative, dtype)))
        objective = gate * advantage
        grad_objective = slope * advantage
        clipped = ratio < 0  # never
    elif SURROGATE == "cispo":
        grad_objective = clip_ratio * advantage
        objective = _scaled(grad_objective, logprob)
        clipped = grad_objective < ratio * advantage
    else:
        ceiling = tl.full((), clip_delta, dtype)
        bounded = tl.where((advantage < 0) & (ratio > ceiling), ceiling, ratio)
        objective = bounded * advantage
        clip_objective = clip_ratio * advantage
        clipped = (clip_objective < objective) | (bounded < ratio)
        objective = tl.where(clip_objective < objective, clip_objective, objective)
        grad_objective = tl.where(clipped, 0.0, ratio * advantage)
    return objective, grad_objective, clipped


@triton.jit
def _reference_kl(logprob, ref, old, ratio, kl_cap, WEIGHTED: tl.constexpr):
    """`reference.loss.reference_kl`."""
    x = ref - logprob
    kl, grown = k3(x)
    grad_kl = -grown
    if WEIGHTED:
        kl = tl.where(tl.abs(x) < 1, ratio * kl, tl.exp(ref - old) - _scaled(ratio, x + 1))
        grad_kl = -_scaled(ratio, x)
    cap = tl.full((), kl_cap, ratio.dtype)
    return tl.where(kl > cap, cap, kl), tl.where(kl > cap, 0.0, grad_kl)


@triton.jit
def loss_of_statistics(
    n, logprob, entropy, advantages_ptr, old_logprobs_ptr, ref_logprobs_ptr, sampler_logprobs_ptr, weights_ptr,
    entropy_coef_ptr, kl_coef_ptr, clip_low, clip_high, clip_delta, sampler_cap, sapo_positive, sapo_negative, kl_cap,
    SURROGATE: tl.constexpr, KL_WEIGHTED: tl.constexpr,
):  # fmt: skip
    """`reference.loss.loss_of_statistics` of one row -> loss, kl, clipped, grad_logprob, grad_entropy."""
    advantage = tl.load(advantages_ptr + n)
    weight = tl.load(weights_ptr + n)
    entropy_coef = tl.load(entropy_coef_ptr + n)
    kl_coef = tl.load(kl_coef_ptr + n)
    old = logprob
    ratio = tl.where(logprob != logprob, logprob, 1.0)
    if old_logprobs_ptr is not None:
        old = tl.load(old_logprobs_ptr + n)
        ratio = tl.exp(logprob - old)
    # Bounds by comparison: maximum and minimum would drop a NaN.
    if sampler_logprobs_ptr is not None:
        correction = tl.exp(old - tl.load(sampler_logprobs_ptr + n))
        cap = tl.full((), sampler_cap, ratio.dtype)
        advantage *= tl.where(correction > cap, cap, correction)
    objective, grad_objective, clipped = _policy_objective(
        ratio, logprob, advantage, clip_low, clip_high, clip_delta, sapo_positive, sapo_negative, SURROGATE
    )
    kl = tl.full((), 0.0, ratio.dtype)
    grad_kl = kl
    if ref_logprobs_ptr is not None:
        kl, grad_kl = _reference_kl(logprob, tl.load(ref_logprobs_ptr + n), old, ratio, kl_cap, KL_WEIGHTED)
    loss = weight * (-objective - _scaled(entropy_coef, entropy) + _scaled(kl_coef, kl))
    grad_logprob = weight * (-grad_objective + _scaled(kl_coef, grad_kl))
    return loss, kl, clipped, grad_logprob, -weight * entropy_coef
