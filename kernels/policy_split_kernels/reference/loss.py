"""The scalar mathematics of one row of the policy loss, between its statistics and its gradient, in plain PyTorch.

Its twins: `cpp/policy_loss.h` and `gpu/loss.py`.
"""

import torch
from torch import Tensor

from ..contract import LossRows, RowStatistics


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
) -> LossRows:
    """The scalar mathematics of one row: everything between its statistics and its gradient."""
    logprobs, entropy, row_max, log_sum = statistics
    on_policy = torch.where(logprobs.isnan(), logprobs, 1.0)
    losses, kl, clipped, grad_objective, grad_penalty = token_losses(
        on_policy if old_logprobs is None else (logprobs - old_logprobs).exp(),
        logprobs, entropy, advantages, old_logprobs, ref_logprobs, sampler_logprobs, weights, entropy_coef, kl_coef,
        surrogate, clip_low, clip_high, clip_delta, sampler_cap,
    )  # fmt: skip
    grad_logprobs = weights * (-grad_objective + grad_penalty)
    grad_entropy = -weights * entropy_coef
    return LossRows(losses, logprobs, entropy, kl, clipped, row_max, log_sum, grad_logprobs, grad_entropy)


def token_losses(
    ratio: Tensor,
    logprobs: Tensor,
    entropy: Tensor,
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """losses, kl, clipped, and without their weights the gradients by the log of the ratio and by the log-prob."""
    if sampler_logprobs is not None:
        old = logprobs if old_logprobs is None else old_logprobs
        advantages = advantages * sampler_weights(old, sampler_logprobs, sampler_cap)
    objective, grad_objective, clipped = policy_objective(
        ratio, logprobs, advantages, surrogate, clip_low, clip_high, clip_delta
    )
    kl, grad_kl = reference_kl(logprobs, ref_logprobs)
    losses = weights * (-objective - scaled(entropy_coef, entropy) + scaled(kl_coef, kl))
    return losses, kl, clipped, grad_objective, scaled(kl_coef, grad_kl)


def policy_objective(
    ratio: Tensor,
    logprobs: Tensor,
    advantages: Tensor,
    surrogate: str,
    clip_low: float,
    clip_high: float,
    clip_delta: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What the policy gradient raises, its derivative by the log of the ratio, and whether the row counts as clipped.

    clip: min(r * A, clip(r) * A), arXiv 1707.06347 eq. 7, r bounded by clip_delta where A < 0.
    cispo: sg(clip(r)) * A * logprob, arXiv 2506.13585 eq. 4.
    Clipped is, with either, a ratio beyond the bound to which its advantage pushes it; one that is pushed back is not.
    """
    clip_ratio = ratio.clamp(1 - clip_low, 1 + clip_high)
    clip_objective = clip_ratio * advantages
    if surrogate == "cispo":
        return scaled(clip_objective, logprobs), clip_objective, clip_objective < ratio * advantages
    bounded = ratio if clip_delta is None else torch.where(advantages < 0, ratio.clamp(max=clip_delta), ratio)
    objective = bounded * advantages
    clipped = (clip_objective < objective) | (bounded < ratio)
    grad_objective = torch.where(clipped, 0.0, ratio * advantages)
    return torch.where(clip_objective < objective, clip_objective, objective), grad_objective, clipped


def sampler_weights(old_logprobs: Tensor, sampler_logprobs: Tensor, sampler_cap: float) -> Tensor:
    """min(pi_old / pi_sampler, cap), detached: the engine that drew the tokens computes other log-probs than ours."""
    return (old_logprobs - sampler_logprobs).exp().clamp(max=sampler_cap)


def reference_kl(logprobs: Tensor, ref_logprobs: Tensor | None) -> tuple[Tensor, Tensor]:
    """k3 = exp(x) - x - 1 with x = ref - logprob, and its derivative by logprob; both 0 without a reference."""
    if ref_logprobs is None:
        return torch.zeros_like(logprobs), torch.zeros_like(logprobs)
    grad_kl = -torch.expm1(ref_logprobs - logprobs)
    return -grad_kl - (ref_logprobs - logprobs), grad_kl


def scaled(coef: Tensor, x: Tensor) -> Tensor:
    """coef * x, 0 where the coefficient is 0 even if x is infinite."""
    return torch.where(coef == 0, 0.0, coef * x)
