"""The scalar mathematics of one row of the policy loss, between its statistics and its gradient, in plain PyTorch.

Its twins: `cpp/policy_loss.h` and `gpu/loss.py`. The derivatives that it returns are what autograd, which can follow
it, would find.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..contract import LossRows, RowStatistics
from .slopes import sloped


def loss_of_statistics(
    statistics: RowStatistics,
    advantages: Tensor,
    old_logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    sampler_logprobs: Tensor | None,
    weights: Tensor,
    entropy_coef: Tensor,
    kl_coef: Tensor,
    surrogate: str,
    clip_low: float,
    clip_high: float,
    clip_delta: float | None,
    sampler_cap: float,
    sapo_temperature: Sequence[float],
    use_bias_correction_kl: bool,
    kl_cap: float | None,
) -> LossRows:
    """The scalar mathematics of one row: everything between its statistics and its gradient."""
    logprobs, entropy, row_max, log_sum = statistics
    ratio = log_ratio(logprobs, old_logprobs).exp()
    advantages = corrected_advantages(advantages, logprobs, old_logprobs, sampler_logprobs, sampler_cap)
    objective, grad_objective, clipped = policy_objective(
        ratio, logprobs, advantages, surrogate, clip_low, clip_high, clip_delta, sapo_temperature
    )
    kl, grad_kl = reference_kl(logprobs, ref_logprobs, old_logprobs, use_bias_correction_kl, kl_cap)
    losses = weighted_losses(objective, entropy, kl, weights, entropy_coef, kl_coef)
    grad_logprobs = weights * (-grad_objective + scaled(kl_coef, grad_kl))
    grad_entropy = -weights * entropy_coef
    return LossRows(losses, logprobs, entropy, kl, clipped, row_max, log_sum, grad_logprobs, grad_entropy)


def log_ratio(logprobs: Tensor, old_logprobs: Tensor | None) -> Tensor:
    """logprobs - old_logprobs; without old ones 0, whose derivative is 1 all the same."""
    if old_logprobs is None:
        return sloped(logprobs, torch.ones_like(logprobs))
    return logprobs - old_logprobs


def weighted_losses(
    objective: Tensor, entropy: Tensor, kl: Tensor, weights: Tensor, entropy_coef: Tensor, kl_coef: Tensor
) -> Tensor:
    return weights * (-objective - scaled(entropy_coef, entropy) + scaled(kl_coef, kl))


def corrected_advantages(
    advantages: Tensor,
    logprobs: Tensor,
    old_logprobs: Tensor | None,
    sampler_logprobs: Tensor | None,
    sampler_cap: float,
) -> Tensor:
    """Times min(pi_old / pi_sampler, cap), where another engine than the old policy drew the tokens."""
    if sampler_logprobs is None:
        return advantages
    old = logprobs.detach() if old_logprobs is None else old_logprobs
    return advantages * sampler_weights(old, sampler_logprobs, sampler_cap)


def policy_objective(
    ratio: Tensor,
    logprobs: Tensor,
    advantages: Tensor,
    surrogate: str,
    clip_low: float,
    clip_high: float,
    clip_delta: float | None,
    sapo_temperature: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor]:
    """What the policy gradient raises, its derivative by the log of the ratio, and whether the row counts as clipped.

    clip: min(r * A, clip(r) * A), arXiv 1707.06347 eq. 7, r bounded by clip_delta where A < 0.
    cispo: sg(clip(r)) * A * logprob, arXiv 2506.13585 eq. 4.
    sapo: soft_gate(r) * A, arXiv 2511.20347; it clips nothing.
    Clipped is, with either, a ratio beyond the bound to which its advantage pushes it; one that is pushed back is not.
    """
    if surrogate == "sapo":
        gate, slope = soft_gate(ratio, by_sign(advantages > 0, sapo_temperature, ratio))
        return gate * advantages, slope * advantages, torch.zeros_like(ratio, dtype=torch.bool)
    clip_ratio = ratio.detach().clamp(1 - clip_low, 1 + clip_high)  # where it is taken, it has no derivative
    clip_objective = clip_ratio * advantages
    if surrogate == "cispo":
        return scaled(clip_objective, logprobs), clip_objective, clip_objective < ratio * advantages
    bounded = ratio if clip_delta is None else torch.where((advantages < 0) & (ratio > clip_delta), clip_delta, ratio)
    objective = bounded * advantages
    clipped = (clip_objective < objective) | (bounded < ratio)
    grad_objective = torch.where(clipped, 0.0, ratio * advantages)
    return torch.where(clip_objective < objective, clip_objective, objective), grad_objective, clipped


def sampler_weights(old_logprobs: Tensor, sampler_logprobs: Tensor, sampler_cap: float) -> Tensor:
    """min(pi_old / pi_sampler, cap): the engine that drew the tokens computes other log-probs than ours."""
    correction = (old_logprobs - sampler_logprobs).exp()
    return torch.where(correction > sampler_cap, sampler_cap, correction)


def by_sign(positive: Tensor, pair: Sequence[float], like: Tensor) -> Tensor:
    """The first number where `positive`, else the second, in the dtype of like: torch makes float32 of two numbers."""
    first, second = (like.new_full((), x) for x in pair)
    return torch.where(positive, first, second)


def soft_gate(ratio: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """4 / t * sigmoid(t * (r - 1)) and its derivative by the log of the ratio, which is 1 at r = 1 and ends at 0."""
    x = temperature * (ratio - 1)
    return 4 / temperature * torch.sigmoid(x), 4 * scaled(torch.sigmoid(x) * torch.sigmoid(-x), ratio)


def reference_kl(
    logprobs: Tensor,
    ref_logprobs: Tensor | None,
    old_logprobs: Tensor | None,
    use_bias_correction_kl: bool,
    kl_cap: float | None,
) -> tuple[Tensor, Tensor]:
    """Estimate of the KL from the reference policy, and its derivative by logprob; both 0 without a reference.

    k3 = exp(x) - x - 1 with x = ref - logprob. Corrected, r * k3 with the token's ratio r, arXiv 2512.02556: its
    derivative, r * (logprob - ref), is that of the KL itself in expectation. Far from 0 it is exp(ref - old) -
    r * (x + 1), which stays finite where r is 0. Above the cap: the cap, and no derivative.
    """
    if ref_logprobs is None:
        return torch.zeros_like(logprobs), torch.zeros_like(logprobs)
    x = ref_logprobs - logprobs
    grad_kl = -torch.expm1(x)
    kl = -grad_kl - x
    if use_bias_correction_kl:
        old = logprobs.detach() if old_logprobs is None else old_logprobs
        ratio, near = log_ratio(logprobs, old_logprobs).exp(), x.abs() < 1
        kl = ratio * torch.where(near, kl, 0.0)
        kl = torch.where(near, kl, torch.where(near, 0.0, ref_logprobs - old).exp() - scaled(ratio, x + 1))
        grad_kl = -scaled(ratio, x)
    if kl_cap is not None:
        kl, grad_kl = (torch.where(kl > kl_cap, at_cap, y) for at_cap, y in ((kl_cap, kl), (0.0, grad_kl)))
    return kl, grad_kl


def scaled(coef: Tensor, x: Tensor) -> Tensor:
    """coef * x, 0 where the coefficient is 0 even if x is infinite."""
    return coef * torch.where((coef == 0) & ~x.isfinite(), 0.0, x)
