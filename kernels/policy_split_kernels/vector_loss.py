"""The policy loss of statistics that are known already: mathematics on vectors (N,) alone, differentiable in them.

For what cannot form the gradient of the logits while it reads them: a ratio that belongs to a whole sequence (GSPO,
arXiv 2507.18071), where no token's gradient is known before the log-probs of its whole sequence are, and a vocabulary
that is split over processes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .contract import LossArguments
from .reference.loss import token_losses


def vector_loss_rows(
    logprobs: Tensor, entropy: Tensor, valid: Tensor, length: int, arguments: LossArguments
) -> tuple[Tensor, ...]:
    """(losses, logprobs, entropy, kl, clipped), (N,) each.

    Each `length` rows are one sequence, which has one ratio; length 1 is the loss of single tokens. Rows that are not
    `valid` (N,) count for nothing. The losses are differentiable in logprobs and entropy, the rest is detached.
    """
    losses, kl, clipped = _losses(logprobs, entropy, valid, max(1, length), *arguments)
    return losses, logprobs.detach(), entropy.detach(), kl, clipped


class _Losses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logprobs: Tensor, entropy: Tensor, valid: Tensor, length: int, *arguments: Any) -> Any:
        _, old, _, _, weights, entropy_coef, *_ = arguments
        old = logprobs if old is None else old
        ratio = _sequence_mean(torch.where(logprobs == old, 0.0, logprobs - old), valid, length).exp()
        losses, kl, clipped, grad_objective, grad_penalty = token_losses(ratio, logprobs, entropy, *arguments)
        grads = (-weights * grad_objective, weights * grad_penalty, -weights * entropy_coef)
        ctx.length = length
        ctx.save_for_backward(valid, *grads)
        ctx.mark_non_differentiable(kl, clipped)
        losses, kl = (torch.where(valid, x, 0.0) for x in (losses, kl))
        return losses, kl, clipped & valid

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> Any:
        valid, to_ratio, to_logprobs, to_entropy = ctx.saved_tensors
        shared = _sequence_mean(to_ratio * upstream, valid, ctx.length)
        grads = (shared + to_logprobs * upstream, to_entropy * upstream)
        return *(torch.where(valid, x, 0.0) for x in grads), *(None,) * 14


_losses: Callable[..., tuple[Tensor, Tensor, Tensor]] = _Losses.apply


def _sequence_mean(x: Tensor, valid: Tensor, length: int) -> Tensor:
    """Mean over the valid rows of each sequence, for each of its rows: (N,) -> (N,)."""
    count = valid.view(-1, length).sum(-1, keepdim=True).clamp(min=1)
    total = torch.where(valid, x, 0.0).view(-1, length).sum(-1, keepdim=True)
    return (total / count).expand(-1, length).reshape(-1)
