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
    by_sign,
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
        x = LossArguments(*arguments)
        objective, to_ratio, to_logprobs, clipped = _objective(logprobs, valid, length, gamma, x)
        kl, grad_kl = reference_kl(logprobs, x.ref_logprobs, x.old_logprobs, x.use_bias_correction_kl, x.kl_cap)
        losses = weighted_losses(objective, entropy, kl, x.weights, x.entropy_coef, x.kl_coef)
        ctx.length = length
        to_logprobs = x.weights * (scaled(x.kl_coef, grad_kl) - to_logprobs)
        ctx.save_for_backward(valid, -x.weights * to_ratio, to_logprobs, -x.weights * x.entropy_coef)
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


def _objective(
    logprobs: Tensor, valid: Tensor, length: int, gamma: GammaWeight | None, x: LossArguments
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The objective of each row, its derivatives by the log of its sequence's ratio and by its log-prob, clipped."""
    log_ratio, nothing = _log_ratio(logprobs, x.old_logprobs), torch.zeros_like(logprobs)
    if gamma is None:
        advantages = corrected_advantages(
            x.advantages, logprobs, x.old_logprobs, x.sampler_logprobs, x.sampler_cap
        )  # fmt: skip
        ratio = _sequence_mean(log_ratio, valid, length).exp()
        clips = (x.clip_low, x.clip_high, x.clip_delta)
        objective, to_ratio, clipped = policy_objective(
            ratio, logprobs, advantages, x.surrogate, *clips, x.sapo_temperature
        )  # fmt: skip
        return objective, to_ratio, nothing, clipped
    if x.sampler_logprobs is not None:
        old = logprobs if x.old_logprobs is None else x.old_logprobs
        log_ratio = log_ratio + sampler_weights(old, x.sampler_logprobs, x.sampler_cap).log()
    push = gamma_weights(_sequence_sum(log_ratio, valid, length), x.advantages, gamma) * x.advantages
    return scaled(push, logprobs), nothing, push, torch.zeros_like(valid)


def gamma_weights(log_weight: Tensor, advantages: Tensor, gamma: GammaWeight) -> Tensor:
    """exp(k * log w + scale * (1 - w)) of each row's sequence."""
    log_weight = log_weight.clamp(max=LARGEST_LOG_WEIGHT)
    k, scale = (by_sign(advantages >= 0, pair, log_weight) for pair in gamma)
    return (k * log_weight - scale * torch.expm1(log_weight)).exp()


def _log_ratio(logprobs: Tensor, old: Tensor | None) -> Tensor:
    old = logprobs if old is None else old
    return torch.where(logprobs == old, 0.0, logprobs - old)


def _sequence_sum(x: Tensor, valid: Tensor, length: int) -> Tensor:
    """Sum over the valid rows of each sequence, for each of its rows: (N,) -> (N,)."""
    return torch.where(valid, x, 0.0).view(-1, length).sum(-1, keepdim=True).expand(-1, length).reshape(-1)


def _sequence_mean(x: Tensor, valid: Tensor, length: int) -> Tensor:
    count = valid.view(-1, length).sum(-1, keepdim=True).clamp(min=1)
    return _sequence_sum(x, valid, length) / count.expand(-1, length).reshape(-1)
