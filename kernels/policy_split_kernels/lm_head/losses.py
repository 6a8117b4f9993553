"""What a chunk of the LM head's tokens can be asked for: the dual-mode loss, or any loss of log-prob and entropy."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..contract import LossArguments, LossRows, RowStatistics
from ..reference.loss import loss_of_statistics
from .chunks import Chunk, Distribution


@dataclass
class DualModeRows:
    """The dual-mode loss; `arguments` are those of `reference.dual_mode_loss` after keep_mask, without grad_logits."""

    arguments: LossArguments
    advantages_of: Callable[[RowStatistics], Tensor] | None = None  # (N,) of all tokens; None: they are known

    def wants_statistics(self) -> bool:
        return self.advantages_of is not None

    def prepare(self, statistics: RowStatistics) -> None:
        if self.advantages_of is not None:
            self.arguments = self.arguments._replace(advantages=self.advantages_of(statistics))

    def rows(self, statistics: RowStatistics, chunk: Chunk) -> LossRows:
        return loss_of_statistics(statistics, *map(chunk.take, self.arguments))

    def fused(self, logits: Tensor, arguments: Distribution, chunk: Chunk, form: bool) -> LossRows:
        op = ops.dual_mode_loss_with_gradient_ if form else ops.dual_mode_loss
        return LossRows(*op(logits, *arguments, *map(chunk.take, self.arguments)))


@dataclass
class TokenRows:
    """weights * loss_fn(logprobs, entropy, index), differentiated by autograd on vectors."""

    loss_fn: Callable[[Tensor, Tensor, Tensor], Tensor]
    weights: Tensor  # (N,)
    _checked: bool = field(default=False, init=False)

    def wants_statistics(self) -> bool:
        return False

    def prepare(self, statistics: RowStatistics) -> None:
        raise NotImplementedError("a loss of each token by itself has nothing to prepare")

    def rows(self, statistics: RowStatistics, chunk: Chunk) -> LossRows:
        logprobs, entropy, row_max, log_sum = statistics
        leaves = logprobs.detach().requires_grad_(), entropy.detach().requires_grad_()
        with torch.enable_grad():
            losses = self.loss_fn(*leaves, chunk.places(logprobs.device))
            self._check(losses, leaves)
            losses = chunk.take(self.weights) * losses
            total = losses.sum()
        reached = torch.autograd.grad(total, leaves, allow_unused=True) if total.requires_grad else (None, None)
        grads = (torch.zeros_like(logprobs) if grad is None else grad for grad in reached)
        kl, clipped = torch.zeros_like(logprobs), torch.zeros_like(logprobs, dtype=torch.bool)
        return LossRows(losses.detach(), logprobs, entropy, kl, clipped, row_max, log_sum, *grads)

    def fused(self, *_: Any) -> None:
        return None

    def _check(self, losses: Tensor, leaves: tuple[Tensor, ...]) -> None:
        """TypeError or ValueError for what is not the loss of each token, or has a gradient that would be lost."""
        check_losses(losses, leaves[0])
        other = None if self._checked else _other_leaf(losses, leaves)
        if other is not None:
            shape = tuple(other.shape)
            raise ValueError(
                f"loss_fn uses a tensor of shape {shape} that requires grad, which it would never get; detach it, or "
                f"use linear_logprobs_and_entropy"
            )
        self._checked = True


def check_losses(losses: Tensor, logprobs: Tensor) -> None:
    if not isinstance(losses, Tensor):
        raise TypeError(f"loss_fn must return a tensor of losses, got {type(losses).__name__}")
    if losses.shape != logprobs.shape:
        raise ValueError(
            f"loss_fn must return one loss for each of the {len(logprobs)} tokens it is given, "
            f"got shape {tuple(losses.shape)}"
        )


def _other_leaf(losses: Tensor, leaves: tuple[Tensor, ...]) -> Tensor | None:
    """A tensor that the losses' graph ends in beside those leaves."""
    known, seen, left = {id(leaf) for leaf in leaves}, set(), [losses.grad_fn]
    if losses.is_leaf and losses.requires_grad and id(losses) not in known:
        return losses
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)  # of a node that accumulates a leaf's gradient
        if isinstance(variable, Tensor) and id(variable) not in known:
            return variable
        left += [following for following, _ in node.next_functions]
    return None
