"""The functions of verl 0.9 (`verl.utils.torch_functional`) by this package's kernels, on CPUs as on GPUs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from policy_split_kernels import followed, ops
from policy_split_kernels.contract import RowStatistics, TargetOutsideVocabulary
from policy_split_kernels.rows import as_rows, inverse_temperature_vector, rows_lie_apart, target_vector

from .statistics import entropy_of, named_statistics


def logprobs_from_logits(
    logits: Tensor,  # (..., V)
    labels: Tensor,  # (...)
    inplace_backward: bool = True,
) -> Tensor:
    """Log-probability of each label in nats, differentiable, `(...)`: as `verl.utils.torch_functional` has it.

    `torch.log_softmax(logits.float(), -1).gather(-1, labels[..., None])[..., 0]` in float32 (float64 for float64
    logits), where verl without flash-attn rounds to the dtype of the logits; 0 where the label is -100.
    `inplace_backward=True` writes the gradient over the logits where they are computed logits with rows of their own,
    which are then gone: pass False, as verl does, where something else reads them in its backward. It then raises the
    RuntimeError of a modified tensor; with flash-attn the gradient would be silently wrong.
    Raises TypeError or ValueError for wrong dtypes, shapes or devices, IndexError for a label outside the vocabulary
    (on a GPU the row becomes NaN).
    """
    if not isinstance(inplace_backward, bool):
        raise TypeError(f"inplace_backward must be a bool, got {inplace_backward!r}")
    if inplace_backward and torch.is_grad_enabled() and _may_be_overwritten(logits):
        return _logprobs_inplace(logits, labels).view(labels.shape)
    return named_statistics(logits, labels, name="labels")[0]


def entropy_from_logits(
    logits: Tensor,  # (..., V)
) -> Tensor:
    """Entropy of each row in nats, differentiable, `(...)`: as `verl.utils.torch_functional` has it.

    `-(log_p.exp() * log_p).sum(-1)` with `log_p = torch.log_softmax(logits.float(), -1)`; logits of -inf, for which
    verl gives NaN, add 0, and an offset that all logits share changes nothing.
    """
    return entropy_of(logits)


def _may_be_overwritten(logits: Tensor) -> bool:
    """Not a leaf's memory, no element of it twice, and nothing asked that plain PyTorch computes."""
    if not isinstance(logits, Tensor) or not logits.requires_grad:
        return False
    if followed.asks_for_more((logits,)):
        return False
    owner = logits if logits._base is None else logits._base
    return not owner.is_leaf and rows_lie_apart(logits)


def _statistics(logits: Tensor, *arguments: Any) -> RowStatistics:
    return followed.statistics(as_rows(logits), *arguments)


class _InplaceBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        rows = as_rows(logits.detach())
        arguments = (target_vector(labels, logits, "labels"), inverse_temperature_vector(1.0, logits), None, None, None)
        try:
            statistics = RowStatistics(*ops.call(ops.logprobs_entropy, rows, *arguments))
        except TargetOutsideVocabulary as error:
            raise error.at(labels, "labels") from None
        ctx.save_for_backward(logits, *arguments, statistics.row_max, statistics.log_sum, statistics.entropy)
        return statistics.logprobs  # no view of it, which the caller could not write over

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        logits, target, inverse_temperature, _, _, _, *statistics = ctx.saved_tensors
        arguments = (target, inverse_temperature, None, None, None)
        if followed.is_differentiated():  # needs the logits as they are
            return *followed.gradients(_statistics, (logits,), arguments, (upstream,)), None
        data, upstream = logits.detach(), upstream.contiguous()
        nothing = torch.zeros_like(upstream)
        ops.call(ops.logprobs_entropy_gradient_, as_rows(data), *arguments, *statistics, upstream, nothing, None)
        return data, None


_logprobs_inplace: Callable[[Tensor, Tensor], Tensor] = _InplaceBackward.apply
