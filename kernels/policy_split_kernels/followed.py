"""What the kernels have no formulas for, by plain PyTorch, which autograd follows at the price of its intermediates.

Forward mode, second derivatives (create_graph=True), the transforms of torch.func, and derivatives in the temperature
or in what a loss is told of a token.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .contract import DivergenceRows, LossArguments, MixtureRows, RowStatistics, valid_rows
from .reference import divergence as divergence_column
from .reference import logits as logits_column
from .vector_loss import vector_loss_rows
from .watchers import has_tangent, in_transform, is_followed


def asks_for_more(logits: Sequence[Tensor], *others: Any) -> bool:
    """Whether more is asked than gradients of these logits by a backward that is not itself differentiated."""
    return in_transform() or is_followed(*others) or has_tangent(*logits)


def is_differentiated() -> bool:
    """Whether the backward that asks is to have a derivative of its own: create_graph=True."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def statistics(logits: Tensor, *arguments: Any) -> RowStatistics:
    """Arguments of `logprobs_entropy`; log_sum is differentiable, too."""
    return logits_column.logprobs_entropy(logits, *arguments)


def divergence(logits_a: Tensor, logits_b: Tensor, *arguments: Any) -> DivergenceRows:
    return divergence_column.divergence(logits_a, logits_b, *arguments)


def jensen_shannon(logits_a: Tensor, logits_b: Tensor, *arguments: Any) -> MixtureRows:
    return divergence_column.jensen_shannon(logits_a, logits_b, *arguments)


def losses(logits: Tensor, *arguments: Any) -> tuple[Tensor]:
    """Arguments of `dual_mode_loss`."""
    targets, _, mask, *_ = distribution = arguments[:5]
    logprobs, entropy, *_ = statistics(logits, *distribution)
    rows = vector_loss_rows(logprobs, entropy, valid_rows(targets, mask), 1, LossArguments(*arguments[5:]))
    return (rows[0],)


def gradients(
    function: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor],
    arguments: Sequence[Any],
    upstream: Sequence[Tensor | None],  # of the function's first results; None: it does not count
) -> tuple[Tensor | None, ...]:
    """Gradient of function(*inputs, *arguments) for each input, itself differentiable; None where none is required."""
    wanted = [x for x in inputs if x.requires_grad]
    with torch.enable_grad():
        results = function(*inputs, *arguments)
    given = [pair for pair in zip(results, upstream, strict=False) if pair[1] is not None and pair[0].requires_grad]
    outputs, vectors = zip(*given, strict=True)
    grads = iter(torch.autograd.grad(outputs, wanted, vectors, create_graph=True, materialize_grads=True))
    return tuple(next(grads) if x.requires_grad else None for x in inputs)
