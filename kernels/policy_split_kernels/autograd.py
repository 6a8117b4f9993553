"""The backward of every operation.

The loss forms its gradient in forward, while the row is at hand; backward multiplies it by the upstream gradient in
place. It can be used once: a second backward computes afresh from the logits, which are kept for it. Three exceptions:
float16, whose range would lose a small gradient before a loss scale reaches it, forms it in backward; so does the
in-place form of bfloat16, which could not be formed anew and would be rounded twice; and every in-place form, which has
given the logits away, raises on a second backward.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from . import followed, ops
from .watchers import can_ask

Function = Callable[..., tuple[Tensor, ...]]

GRADIENT_IN_BACKWARD = (torch.float16,)


def statistics_rows(logits: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """The four vectors of `contract.RowStatistics`; logprobs, entropy and log_sum are differentiable in logits.

    row_max is a constant to log_sum's derivative, so that their sum has that of the log-sum-exp.
    """
    _, inverse_temperature, *_ = arguments
    if followed.asks_for_more((logits,), inverse_temperature):
        return followed.statistics(logits, *arguments)
    return _rows(ops.logprobs_entropy, _statistics, (logits,), *arguments)


def divergence_rows(logits_a: Tensor, logits_b: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """The eight vectors of `contract.DivergenceRows`; the first four are differentiable in both logits."""
    inverse_temperature, _ = arguments
    if followed.asks_for_more((logits_a, logits_b), inverse_temperature):
        return followed.divergence(logits_a, logits_b, *arguments)
    return _rows(ops.divergence, _divergence, (logits_a, logits_b), *arguments)


def mixture_rows(logits_a: Tensor, logits_b: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """The seven vectors of `contract.MixtureRows`; the first one is differentiable in both logits."""
    inverse_temperature, _, _ = arguments
    if followed.asks_for_more((logits_a, logits_b), inverse_temperature):
        return followed.jensen_shannon(logits_a, logits_b, *arguments)
    return _rows(ops.jensen_shannon, _mixture, (logits_a, logits_b), *arguments)


def loss_rows(logits: Tensor, *arguments: Any, inplace_gradient: bool = False) -> tuple[Tensor, ...]:
    """The first five vectors of `contract.LossRows`; losses are differentiable in logits, the rest is detached."""
    if logits.requires_grad and torch.is_grad_enabled():
        return _loss(logits, inplace_gradient, *arguments)
    rows: tuple[Tensor, ...] = ops.call(ops.dual_mode_loss, logits, *arguments)
    return rows[:5]


def _rows(op: OpOverload, function: Function, logits: tuple[Tensor, ...], *arguments: Any) -> tuple[Tensor, ...]:
    if not torch.compiler.is_compiling() and torch.is_grad_enabled() and any(x.requires_grad for x in logits):
        return function(*logits, *arguments)  # where autograd would lead the op, too
    rows: tuple[Tensor, ...] = ops.call(op, *logits, *arguments)
    return rows


class _Statistics(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        ctx.set_materialize_grads(False)
        logits, targets, inverse_temperature, mask, ctx.softcap, keep_mask = inputs
        rows = ops.call(ops.logprobs_entropy, *inputs)
        _, entropy, row_max, log_sum = rows
        ctx.mark_non_differentiable(row_max)
        ctx.save_for_backward(
            logits, targets, inverse_temperature, mask, keep_mask, row_max, log_sum.clone(), entropy.clone()
        )  # fmt: skip
        return rows

    @staticmethod
    def backward(
        ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None, _: None, grad_lse: Tensor | None
    ) -> Any:
        nothing = (None,) * 5
        if grad_logprobs is None and grad_entropy is None and grad_lse is None:
            return None, *nothing
        *tokens, keep_mask, row_max, log_sum, entropy = ctx.saved_tensors
        tokens = (*tokens, ctx.softcap, keep_mask)
        if followed.is_differentiated():
            upstream = (grad_logprobs, grad_entropy, None, grad_lse)
            grad = followed.gradients(followed.statistics, tokens[:1], tokens[1:], upstream)
            return *grad, *nothing
        grads = (torch.zeros_like(entropy) if g is None else g.contiguous() for g in (grad_logprobs, grad_entropy))
        arguments = (*tokens, row_max, log_sum, entropy)
        grad_lse = None if grad_lse is None else grad_lse.contiguous()
        return ops.call(ops.logprobs_entropy_gradient, *arguments, *grads, grad_lse), *nothing


_statistics: Function = _Statistics.apply
ops.differentiable(ops.logprobs_entropy, _statistics, 1)


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        ctx.set_materialize_grads(False)
        rows = ops.call(ops.divergence, *inputs)
        ctx.mark_non_differentiable(*rows[4:])
        ctx.save_for_backward(*inputs, *(x.clone() for x in rows[:4]), *rows[4:])
        return rows

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> Any:
        wants = ctx.needs_input_grad[:2]
        if all(g is None for g in upstream[:4]):
            return None, None, None, None
        saved = ctx.saved_tensors
        if followed.is_differentiated():
            return *followed.gradients(followed.divergence, saved[:2], saved[2:4], upstream[:4]), None, None
        vectors = (torch.zeros_like(saved[4]) if g is None else g.contiguous() for g in upstream[:4])
        grads = ops.call(ops.divergence_gradient, *saved, *vectors, *wants)
        return *(grad if wanted else None for grad, wanted in zip(grads, wants, strict=True)), None, None


_divergence: Function = _Divergence.apply
ops.differentiable(ops.divergence, _divergence, 2)


class _Mixture(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        ctx.set_materialize_grads(False)
        *tensors, ctx.beta = inputs
        rows = ops.call(ops.jensen_shannon, *inputs)
        ctx.mark_non_differentiable(*rows[1:])
        ctx.save_for_backward(*tensors, *rows[1:])
        return rows

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: Any) -> Any:
        wants = ctx.needs_input_grad[:2]
        if upstream is None:
            return (None,) * 5
        tensors, rows = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
        if followed.is_differentiated():
            arguments = (*tensors[2:], ctx.beta)
            return *followed.gradients(followed.jensen_shannon, tensors[:2], arguments, (upstream,)), None, None, None
        grads = ops.call(ops.jensen_shannon_gradient, *tensors, ctx.beta, *rows, upstream.contiguous(), *wants)
        return *(grad if wanted else None for grad, wanted in zip(grads, wants, strict=True)), None, None, None


_mixture: Function = _Mixture.apply
ops.differentiable(ops.jensen_shannon, _mixture, 2)


class _Loss(torch.autograd.Function):
    """Not a formula of the op, which would have to give away as an output what backward then changes."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, inplace: bool, *arguments: Any) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.inplace, ctx.spent, ctx.formed = inplace, False, None
        data = logits.detach()
        if logits.dtype in GRADIENT_IN_BACKWARD or (inplace and logits.dtype == torch.bfloat16):
            rows = ops.call(ops.dual_mode_loss, data, *arguments)
        elif inplace:
            rows, ctx.formed = ops.call(ops.dual_mode_loss_with_gradient_, data, *arguments), data
        else:
            *rows, ctx.formed = ops.call(ops.dual_mode_loss_with_gradient, data, *arguments)
        losses, logprobs, entropy, kl, clipped, *saved = rows
        ctx.mark_non_differentiable(logprobs, entropy, kl, clipped)
        kept = None if inplace and ctx.formed is not None else logits
        *tokens, ctx.softcap, keep_mask = arguments[:5]
        ctx.save_for_backward(kept, *tokens, keep_mask, entropy.clone(), *saved)
        if not torch.compiler.is_compiling():  # not saved: they may come out of inference mode
            ctx.tokens = arguments[5:]
            ctx.versions = _versions(ctx.tokens)
        return losses, logprobs, entropy, kl, clipped

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor | None, *_: Any) -> Any:
        nothing = (None,) * (len(ctx.needs_input_grad) - 1)
        if grad_losses is None:
            return None, *nothing
        if ctx.inplace and followed.is_differentiated():
            raise RuntimeError("create_graph=True needs the logits, which inplace_gradient=True has written over")
        if ctx.spent and ctx.inplace:
            raise RuntimeError(
                "second backward through a loss with inplace_gradient=True: its logits have become the gradient and "
                "are gone; use inplace_gradient=False to go backward more than once"
            )
        if followed.is_differentiated():
            if _versions(ctx.tokens) != ctx.versions:
                raise RuntimeError("create_graph=True: a per-token argument of the loss was changed after its forward")
            logits, *tokens, keep_mask, _, _, _, _, _ = ctx.saved_tensors
            arguments = (*tokens, ctx.softcap, keep_mask, *ctx.tokens)
            return *followed.gradients(followed.losses, (logits,), arguments, (grad_losses,)), *nothing
        formed, ctx.formed, ctx.spent = ctx.formed, None, True
        if formed is not None and _is_one(grad_losses):
            return formed, *nothing
        again = formed is not None and formed.dtype == torch.bfloat16 and can_ask(grad_losses)
        if formed is not None and not again:  # bfloat16 on a CPU is formed anew, and so rounded once
            ops.call(ops.scale_rows_, formed, grad_losses.contiguous())
            return formed, *nothing
        del formed
        logits, *tokens, keep_mask, entropy, row_max, log_sum, grad_logprobs, grad_entropy = ctx.saved_tensors
        upstream = (grad_logprobs * grad_losses, grad_entropy * grad_losses)
        arguments = (*tokens, ctx.softcap, keep_mask, row_max, log_sum, entropy, *upstream, None)
        if not ctx.inplace:
            return ops.call(ops.logprobs_entropy_gradient, logits.detach(), *arguments), *nothing
        data = logits.detach()
        ops.call(ops.logprobs_entropy_gradient_, data, *arguments)
        return data, *nothing


_loss: Function = _Loss.apply


def _versions(tokens: Sequence[Any]) -> list[int]:
    return [x._version for x in tokens if isinstance(x, Tensor) and not x.is_inference()]


def _is_one(upstream: Tensor) -> bool:
    """Whether it is known for free that nothing is to be multiplied: the kernel finds out for itself, at a call."""
    return can_ask(upstream) and upstream.stride() == (0,) and upstream.numel() > 0 and float(upstream[0]) == 1
