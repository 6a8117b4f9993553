"""The LM head's passes as single operations, for torch.compile: a graph cannot ask the host how many tokens count.

Their fakes know the shapes without that number; what runs is what runs outside of graphs.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..autograd import GRADIENT_IN_BACKWARD
from ..contract import LossArguments, LossRows, RowStatistics, check_targets, statistics_dtype, valid_rows
from ..ops import LOSS, define, set_fake
from .call import HeadArguments, LinearCall, linear_head
from .chunks import LinearHead, Loss, Wants, gradient_pass, loss_pass, statistics_pass
from .losses import DualModeRows
from .products import Gradients

_HEAD = (
    "Tensor hidden, Tensor weight, Tensor? bias, Tensor targets, Tensor inverse_temperature, Tensor? mask, "
    "float? softcap, Tensor? keep_mask, ScalarType operand_dtype, ScalarType? logits_dtype, int? chunk_bytes, "
    "bool batch_invariant"
)
_UPSTREAM = (
    "Tensor row_max, Tensor log_sum, Tensor entropy, Tensor grad_logprobs, Tensor grad_entropy, Tensor? grad_lse"
)
_WANTS = "bool wants_hidden, bool wants_weight, bool wants_bias"
_FACTORS, _ARGUMENTS = 3, len(HeadArguments._fields)


@define("linear_statistics", _HEAD, returns=4)
def linear_statistics_op(*head: Any) -> tuple[Tensor, ...]:
    return tuple(statistics_pass(_made(head)))


@define("linear_statistics_gradient", _HEAD, _UPSTREAM, _WANTS, returns=3)
def linear_statistics_gradient_op(*arguments: Any) -> tuple[Tensor, ...]:
    """Of what is not wanted, an empty tensor."""
    row_max, log_sum, entropy, grad_logprobs, grad_entropy, grad_lse, *wanted = arguments[_FACTORS + _ARGUMENTS :]
    vectors = (row_max, log_sum, entropy, grad_logprobs, grad_entropy, grad_lse)
    wants = (wanted[0], wanted[1], wanted[2])
    return _given(gradient_pass(_made(arguments), *vectors, wants), arguments[0])


@define("linear_dual_mode_loss", _HEAD, LOSS, _WANTS, "bool form", returns=12)
def linear_dual_mode_loss_op(*arguments: Any) -> tuple[Tensor, ...]:
    """The rows of the loss and, if `form`, the gradients for an upstream of 1: of what is not wanted, empty tensors."""
    head, rest = _made(arguments), arguments[_FACTORS + _ARGUMENTS :]
    loss, wants, form = DualModeRows(LossArguments(*rest[:-4])), rest[-4:-1], rest[-1]
    rows, gradients = loss_pass(head, loss, wants, form=form)
    return *rows, *_given(gradients, arguments[0])


def _made(arguments: tuple[Any, ...]) -> LinearHead:
    hidden, weight, bias = arguments[:_FACTORS]
    rest = HeadArguments(*arguments[_FACTORS : _FACTORS + _ARGUMENTS])
    check_targets(rest.targets, valid_rows(rest.targets, rest.mask), len(weight))  # while they are the caller's, whole
    return linear_head(hidden, weight, bias, rest)


def _given(gradients: Gradients | None, like: Tensor) -> tuple[Tensor, ...]:
    each = (None,) * 3 if gradients is None else (gradients.hidden, gradients.weight, gradients.bias)
    return tuple(like.new_empty((0,)) if x is None else x for x in each)


def _fake_rows(*arguments: Any, count: int) -> tuple[Tensor, ...]:
    hidden, dtype = arguments[0], statistics_dtype(arguments[_FACTORS + 5])
    return tuple(hidden.new_empty((hidden.shape[0],), dtype=dtype) for _ in range(count))


def _fake_gradients(hidden: Tensor, weight: Tensor, operand_dtype: torch.dtype, wants: Wants) -> tuple[Tensor, ...]:
    wide = statistics_dtype(operand_dtype)
    shapes = (hidden.shape, weight.shape, weight.shape[:1])
    return tuple(
        hidden.new_empty(shape, dtype=wide) if wanted else hidden.new_empty((0,))
        for shape, wanted in zip(shapes, wants, strict=True)
    )


def _fake_loss(*arguments: Any) -> tuple[Tensor, ...]:
    rows = list(_fake_rows(*arguments, count=9))
    rows[4] = rows[4].new_empty(rows[4].shape, dtype=torch.bool)
    *wants, form = arguments[-4:]
    wanted = tuple(form and x for x in wants)
    return *rows, *_fake_gradients(arguments[0], arguments[1], arguments[_FACTORS + 5], wanted)


set_fake(linear_statistics_op, lambda *arguments: _fake_rows(*arguments, count=4))
set_fake(
    linear_statistics_gradient_op,
    lambda *arguments: _fake_gradients(arguments[0], arguments[1], arguments[_FACTORS + 5], arguments[-3:]),
)
set_fake(linear_dual_mode_loss_op, _fake_loss)


class _Statistics(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, wants: Wants, *head: Any) -> Any:
        rows = linear_statistics_op(*head)
        _, entropy, row_max, log_sum = rows
        ctx.wants, ctx.settings = wants, head[_FACTORS:]
        ctx.mark_non_differentiable(row_max)
        hidden, weight, bias, targets, inverse_temperature, mask, ctx.softcap, keep_mask, *ctx.settings = head
        ctx.save_for_backward(
            hidden, weight, bias, targets, inverse_temperature, mask, keep_mask, row_max, log_sum, entropy
        )  # fmt: skip
        return rows

    @staticmethod
    def backward(ctx: Any, grad_logprobs: Tensor, grad_entropy: Tensor, _: Any, grad_lse: Tensor) -> Any:
        *head, keep_mask, row_max, log_sum, entropy = ctx.saved_tensors
        upstream = (grad_logprobs.contiguous(), grad_entropy.contiguous(), grad_lse.contiguous())
        gradients = linear_statistics_gradient_op(
            *head, ctx.softcap, keep_mask, *ctx.settings, row_max, log_sum, entropy, *upstream, *ctx.wants
        )  # fmt: skip
        return None, *_back(gradients, head, ctx.wants), *(None,) * _ARGUMENTS


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, wants: Wants, form: bool, head: int, *arguments: Any) -> Any:
        *rows, by_hidden, by_weight, by_bias = linear_dual_mode_loss_op(*arguments, *wants, form)
        hidden, weight, bias, targets, inverse_temperature, mask, ctx.softcap, keep_mask, *settings = arguments[:head]
        ctx.wants, ctx.form, ctx.settings, ctx.count = wants, form, settings, len(arguments)
        ctx.mark_non_differentiable(*rows)
        _, _, entropy, _, _, row_max, log_sum, grad_logprobs, grad_entropy = rows
        ctx.save_for_backward(
            hidden, weight, bias, targets, inverse_temperature, mask, keep_mask, row_max, log_sum, entropy,
            grad_logprobs, grad_entropy, by_hidden, by_weight, by_bias,
        )  # fmt: skip
        return rows[0].sum(), *rows

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> Any:
        *head, keep_mask, row_max, log_sum, entropy, grad_logprobs, grad_entropy, by_hidden, by_weight, by_bias = (
            ctx.saved_tensors
        )
        gradients = tuple(x * upstream for x in (by_hidden, by_weight, by_bias))
        if not ctx.form:
            vectors = (row_max, log_sum, entropy, grad_logprobs * upstream, grad_entropy * upstream, None)
            gradients = linear_statistics_gradient_op(
                *head, ctx.softcap, keep_mask, *ctx.settings, *vectors, *ctx.wants
            )  # fmt: skip
        return None, None, None, *_back(gradients, head, ctx.wants), *(None,) * (ctx.count - _FACTORS)


def _back(gradients: tuple[Tensor, ...], factors: Any, wants: Wants) -> Any:
    """Each gradient that is wanted in its factor's own dtype."""
    return tuple(g.to(x.dtype) if wanted else None for g, x, wanted in zip(gradients, factors, wants, strict=False))


_statistics: Callable[..., tuple[Tensor, ...]] = _Statistics.apply
_loss: Callable[..., tuple[Tensor, ...]] = _Loss.apply


def traced_statistics(call: LinearCall) -> RowStatistics:
    """`autograd.linear_statistics` in a graph."""
    return RowStatistics(*_statistics(call.wants, *call.factors, *call.arguments))


def traced_loss(call: LinearCall, loss: Loss) -> tuple[Tensor, LossRows]:
    """`autograd.linear_loss` in a graph: of the dual-mode loss, whose numbers are tensors."""
    if not isinstance(loss, DualModeRows):
        raise TypeError(f"no operation computes a {type(loss).__name__} in a graph")
    if loss.advantages_of is not None:
        with torch.no_grad():
            loss.prepare(traced_statistics(call))
    arguments = loss.arguments
    dtypes = {x.dtype for x in call.factors if x is not None} | {call.arguments.operand_dtype}
    form = not dtypes & set(GRADIENT_IN_BACKWARD)
    total, *rows = _loss(call.wants, form, _FACTORS + _ARGUMENTS, *call.factors, *call.arguments, *arguments)
    return total, LossRows(*rows)
