"""The policy loss of statistics that are known already: mathematics on vectors (N,) alone, differentiable in them.

For what cannot form the gradient of the logits while it reads them: a ratio that belongs to a whole sequence (GSPO,
arXiv 2507.18071; VESPO, arXiv 2602.10693), where no token's gradient is known before the log-probs of its whole
sequence are; losses that are not reduced, each with an upstream gradient of its own; a vocabulary that is split.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .contract import LossArguments
from .reference.loss import (
    corrected_advantages,
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
    surrogate is VESPO's. Rows that are not `valid` (N,) count for nothing. The losses are differentiable in logprobs
    and entropy, the rest is detached.
    """
    losses, kl, clipped = _losses(logprobs, entropy, valid, max(1, length), gamma, *arguments)
    return losses, logprobs.detach(), entropy.detach(), kl, clipped


class _Losses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logprobs: Tensor,
        entropy: Tensor,
        valid: Tensor,
        length: int,
        gamma: GammaWeight | None,
        *arguments: Any,
    ) -> Any:
        advantages, old, ref, sampler, weights, entropy_coef, kl_coef, surrogate, *clips, cap, sapo, correct, kl_cap = (
            arguments
        )
        if gamma is None:
            advantages = corrected_advantages(advantages, logprobs, old, sampler, cap)
            ratio = _sequence_mean(_log_ratio(logprobs, old), valid, length).exp()
            objective, to_ratio, clipped = policy_objective(ratio, logprobs, advantages, surrogate, *clips, sapo)
            to_logprobs = 0.0
        else:
            log_weights = _log_ratio(logprobs, old) + _log_sampler_weights(logprobs, old, sampler, cap)
            to_logprobs = gamma_weights(_sequence_sum(log_weights, valid, length), advantages, gamma) * advantages
            objective, to_ratio = scaled(to_logprobs, logprobs), torch.zeros_like(logprobs)
            clipped = torch.zeros_like(valid)
        kl, grad_kl = reference_kl(logprobs, ref, old, correct, kl_cap)
        losses = weighted_losses(objective, entropy, kl, weights, entropy_coef, kl_coef)
        ctx.length = length
        to_logprobs = weights * (scaled(kl_coef, grad_kl) - to_logprobs)
        ctx.save_for_backward(valid, -weights * to_ratio, to_logprobs, -weights * entropy_coef)
        ctx.mark_non_differentiable(kl, clipped)
        losses, kl = (torch.where(valid, x, 0.0) for x in (losses, kl))
        return losses, kl, clipped & valid

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> Any:
        valid, to_ratio, to_logprobs, to_entropy = ctx.saved_tensors
        shared = _sequence_mean(to_ratio * upstream, valid, ctx.length)
        grads = (shared + to_logprobs * upstream, to_entropy * upstream)
        return *(torch.where(valid, x, 0.0) for x in grads), *(None,) * (len(ctx.needs_input_grad) - 2)


_losses: Callable[..., tuple[Tensor, Tensor, Tensor]] = _Losses.apply


def gamma_weights(log_weight: Tensor, advantages: Tensor, gamma: GammaWeight) -> Tensor:
    """exp(k * log w + scale * (1 - w)) of each row's sequence."""
    log_weight = log_weight.clamp(max=LARGEST_LOG_WEIGHT)
    k, scale = (
        torch.where(advantages >= 0, *(log_weight.new_full((), x) for x in pair)) for pair in (gamma.k, gamma.scale)
    )
    return (k * log_weight - scale * torch.expm1(log_weight)).exp()


def _log_ratio(logprobs: Tensor, old: Tensor | None) -> Tensor:
    old = logprobs if old is None else old
    return torch.where(logprobs == old, 0.0, logprobs - old)


def _log_sampler_weights(logprobs: Tensor, old: Tensor | None, sampler: Tensor | None, cap: float) -> Tensor | float:
    return 0.0 if sampler is None else sampler_weights(logprobs if old is None else old, sampler, cap).log()


def _sequence_sum(x: Tensor, valid: Tensor, length: int) -> Tensor:
    """Sum over the valid rows of each sequence, for each of its rows: (N,) -> (N,)."""
    return torch.where(valid, x, 0.0).view(-1, length).sum(-1, keepdim=True).expand(-1, length).reshape(-1)


def _sequence_mean(x: Tensor, valid: Tensor, length: int) -> Tensor:
    count = valid.view(-1, length).sum(-1, keepdim=True).clamp(min=1)
    return _sequence_sum(x, valid, length) / count.expand(-1, length).reshape(-1)
