"""The backward of the LM head's functions.

A loss forms its gradients in forward, while a chunk's logits are at hand; backward multiplies them by the upstream
gradient in place and gives them away. A second backward, and every backward of float16 (whose range would lose a small
gradient before a loss scale reaches it), computes the logits again. So does that of log-probs and entropy.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..autograd import GRADIENT_IN_BACKWARD
from ..contract import LossRows, RowStatistics, statistics_dtype
from .call import LinearCall, MakeHead
from .chunks import Loss, gradient_pass, loss_pass, statistics_pass
from .graphs import traced_loss, traced_statistics
from .products import Gradients


def linear_statistics(call: LinearCall) -> RowStatistics:
    """(N,) each, differentiable in hidden, weight and bias as `statistics_rows`: one product, three in backward."""
    if torch.compiler.is_compiling():
        return traced_statistics(call)
    if torch.is_grad_enabled():
        return RowStatistics(*_statistics(*call.factors, call.make_head))
    return statistics_pass(call.make_head(*call.factors))


def linear_loss(call: LinearCall, loss: Loss) -> tuple[Tensor, LossRows]:
    """The sum of the losses (), differentiable in hidden, weight and bias, and the rows (N,) each, detached."""
    if torch.compiler.is_compiling():
        return traced_loss(call, loss)
    if torch.is_grad_enabled() and any(call.wants):
        total, *vectors = _loss(*call.factors, call.make_head, loss)
        return total, LossRows(*vectors)
    rows, _ = loss_pass(call.make_head(*call.factors), loss, (False,) * 3, form=False)
    return rows.losses.sum(), rows


class _Statistics(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, make_head: MakeHead
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.make_head = make_head
        statistics = statistics_pass(make_head(hidden, weight, bias))
        logprobs, entropy, row_max, log_sum = statistics
        ctx.mark_non_differentiable(row_max)
        saved = (row_max, log_sum.clone(), entropy.clone())  # what is returned is the caller's
        ctx.save_for_backward(hidden, weight, bias, *saved)
        return logprobs, entropy, row_max, log_sum

    @staticmethod
    def backward(
        ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None, _: None, grad_lse: Tensor | None
    ) -> Any:
        if grad_logprobs is None and grad_entropy is None and grad_lse is None:
            return None, None, None, None
        _refuse_second_derivative()
        hidden, weight, bias, row_max, log_sum, entropy = ctx.saved_tensors
        upstream = (grad_logprobs, grad_entropy)
        by_logprobs, by_entropy = (torch.zeros_like(entropy) if g is None else g.contiguous() for g in upstream)
        head, wants = ctx.make_head(hidden, weight, bias), ctx.needs_input_grad[:3]
        gradients = gradient_pass(head, row_max, log_sum, entropy, by_logprobs, by_entropy, grad_lse, wants)
        dtypes = _dtypes(hidden, weight, bias)
        return *(_cast(*pair) for pair in zip(_each(gradients), dtypes, strict=True)), None


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, make_head: MakeHead, loss: Loss
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.make_head, ctx.dtypes = make_head, _dtypes(hidden, weight, bias)
        head = make_head(hidden, weight, bias)
        form = not {*ctx.dtypes, head.products.operand_dtype} & set(GRADIENT_IN_BACKWARD)
        rows, gradients = loss_pass(head, loss, ctx.needs_input_grad[:3], form=form)
        ctx.formed = None if gradients is None else _each(gradients)  # and not the products, with autocast's weight
        ctx.save_for_backward(hidden, weight, bias, *rows[-2:], rows.row_max, rows.log_sum, rows.entropy.clone())
        ctx.mark_non_differentiable(*rows)
        return rows.losses.sum(), *rows

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: Any) -> Any:
        if upstream is None:
            return (None,) * 5
        _refuse_second_derivative()
        formed, ctx.formed = ctx.formed, None
        if formed is not None:  # what was saved is not asked for: under checkpointing that would compute it again
            return *(_scaled(*pair, upstream) for pair in zip(formed, ctx.dtypes, strict=True)), None, None
        hidden, weight, bias, grad_logprobs, grad_entropy, row_max, log_sum, entropy = ctx.saved_tensors
        head, wants = ctx.make_head(hidden, weight, bias), ctx.needs_input_grad[:3]
        by_logprobs, by_entropy = (x * upstream for x in (grad_logprobs, grad_entropy))
        gradients = gradient_pass(head, row_max, log_sum, entropy, by_logprobs, by_entropy, None, wants)
        return *(_cast(*pair) for pair in zip(_each(gradients), ctx.dtypes, strict=True)), None, None


def _refuse_second_derivative() -> None:
    if torch.is_grad_enabled():
        raise RuntimeError("an LM head's loss can be differentiated once: create_graph=True is not supported")


def _each(gradients: Gradients) -> tuple[Tensor | None, ...]:
    return gradients.hidden, gradients.weight, gradients.bias


def _dtypes(*tensors: Tensor | None) -> list[torch.dtype | None]:
    return [None if x is None else x.dtype for x in tensors]


def _cast(x: Tensor | None, dtype: torch.dtype | None) -> Tensor | None:
    return None if x is None or dtype is None else x.to(dtype)


def _scaled(x: Tensor | None, dtype: torch.dtype, upstream: Tensor) -> Tensor | None:
    """x * upstream, in place where x has the dtype."""
    if x is None:
        return None
    if x.dtype != dtype:
        return torch.mul(x, upstream, out=torch.empty(x.shape, dtype=dtype, device=x.device))
    rows = x.view(1, -1, x.shape[-1])
    scale = upstream.to(statistics_dtype(x.dtype))  # the loss may be of a wider dtype than one of the factors
    ops.scale_rows_(rows, scale.expand(rows.shape[1]).contiguous())
    return x


_statistics: Callable[..., tuple[Tensor, ...]] = _Statistics.apply
_loss: Callable[..., tuple[Tensor, ...]] = _Loss.apply
