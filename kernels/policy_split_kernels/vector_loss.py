"""The policy loss of statistics that are known already: mathematics on vectors (N,) alone, differentiable in them.

For what cannot form the gradient of the logits while it reads them: a ratio that belongs to a whole sequence (GSPO,
arXiv 2507.18071; VESPO, arXiv 2602.10693), where no token's gradient is known before the log-probs of its whole
sequence are; losses that are not reduced, each with an upstream gradient of its own; a vocabulary that is split.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .contract import LossArguments
from .reference.loss import (
    by_sign,
    corrected_advantages,
    log_ratio,
    policy_objective,
    reference_kl,
    sampler_weights,
    scaled,
    weighted_losses,
)

LARGEST_LOG_WEIGHT = 20.0  # of a sequence: exp(k * 20 - e^20) is 0 already


class GammaWeight(NamedTuple):
    """VESPO's weight of a sequence whose ratio is w: w^k * exp(scale * (1 - w)), 1 at w = 1."""

    k: Sequence[float]  # where the advantage is not below 0, and where it is
    scale: Sequence[float]  # lambda of the paper


def vector_loss_rows(
    logprobs: Tensor,
    entropy: Tensor,
    valid: Tensor,
    length: int,
    arguments: LossArguments,
    gamma: GammaWeight | None = None,
) -> tuple[Tensor, ...]:
    """(losses, logprobs, entropy, kl, clipped), (N,) each.

    Each `length` rows are one sequence, which has one ratio; length 1 is the loss of single tokens. With a `gamma` the
    surrogate is VESPO's. Rows that are not `valid` (N,) count for nothing. The losses are differentiable in the first
    two and in the arguments, the rest is detached.
    """
    vectors: dict[str, Any] = {
        name: _zero_unless(valid, x) for name, x in arguments._asdict().items() if isinstance(x, Tensor)
    }
    x = arguments._replace(**vectors)
    objective, clipped = _objective(logprobs, valid, max(1, length), gamma, x)
    kl, _ = reference_kl(logprobs, x.ref_logprobs, x.old_logprobs, x.use_bias_correction_kl, x.kl_cap)
    losses = weighted_losses(objective, entropy, kl, x.weights, x.entropy_coef, x.kl_coef)
    losses, kl = (_zero_unless(valid, y) for y in (losses, kl))
    return losses, logprobs.detach(), entropy.detach(), kl.detach(), clipped & valid


def _zero_unless(valid: Tensor, x: Tensor) -> Tensor:
    return torch.where(valid, x, 0.0)


def _objective(
    logprobs: Tensor, valid: Tensor, length: int, gamma: GammaWeight | None, x: LossArguments
) -> tuple[Tensor, Tensor]:
    """The objective of each row, and whether it counts as clipped."""
    gap = _log_ratio(logprobs, x.old_logprobs)
    if gamma is None:
        advantages = corrected_advantages(x.advantages, logprobs, x.old_logprobs, x.sampler_logprobs, x.sampler_cap)
        ratio, clips = _sequence_mean(gap, valid, length).exp(), (x.clip_low, x.clip_high, x.clip_delta)
        objective, _, clipped = policy_objective(ratio, logprobs, advantages, x.surrogate, *clips, x.sapo_temperature)
        return objective, clipped
    if x.sampler_logprobs is not None:
        old = logprobs if x.old_logprobs is None else x.old_logprobs
        gap = gap + sampler_weights(old, x.sampler_logprobs, x.sampler_cap).log()
    weights = gamma_weights(_sequence_sum(gap.detach(), valid, length), x.advantages, gamma)
    return scaled(weights * x.advantages, logprobs), torch.zeros_like(valid)


def _log_ratio(logprobs: Tensor, old_logprobs: Tensor | None) -> Tensor:
    """That of `reference.loss`, and 0 between two equal infinities."""
    gap = log_ratio(logprobs, old_logprobs)
    return gap if old_logprobs is None else torch.where(gap.isnan() & (logprobs == old_logprobs), 0.0, gap)


def gamma_weights(log_weight: Tensor, advantages: Tensor, gamma: GammaWeight) -> Tensor:
    """exp(k * log w + scale * (1 - w)) of each row's sequence."""
    log_weight = log_weight.clamp(max=LARGEST_LOG_WEIGHT)
    k, scale = (by_sign(advantages >= 0, pair, log_weight) for pair in gamma)
    return (k * log_weight - scale * torch.expm1(log_weight)).exp()


def _sequence_sum(x: Tensor, valid: Tensor, length: int) -> Tensor:
    """Sum over the valid rows of each sequence, for each of its rows: (N,) -> (N,)."""
    return torch.where(valid, x, 0.0).view(-1, length).sum(-1, keepdim=True).expand(-1, length).reshape(-1)


def _sequence_mean(x: Tensor, valid: Tensor, length: int) -> Tensor:
    count = valid.view(-1, length).sum(-1, keepdim=True).clamp(min=1)
    return _sequence_sum(x, valid, length) / count.expand(-1, length).reshape(-1)
