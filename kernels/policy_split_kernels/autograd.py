"""The backward of every operation.

The loss forms its gradient in forward, while the row is at hand; backward multiplies it by the upstream gradient in
place. It can be used once: a second backward computes afresh from the logits, which are kept for it. Two exceptions:
float16, whose range would lose a small gradient before a loss scale reaches it, forms it in backward; and the in-place
form, which has given the logits away, raises on a second backward.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import ops

GRADIENT_IN_BACKWARD = (torch.float16,)


def loss_rows(logits: Tensor, *arguments: Any, inplace_gradient: bool = False) -> tuple[Tensor, ...]:
    """The nine vectors of `reference.LossRows`; losses are differentiable in logits, the rest is detached."""
    if torch.is_grad_enabled() and logits.requires_grad:
        return _loss(logits, inplace_gradient, *arguments)
    rows: tuple[Tensor, ...] = ops.dual_mode_loss(logits, *arguments)
    return rows


def _save_statistics(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, targets, inverse_temperature, mask, ctx.softcap, keep_mask = inputs
    _, entropy, row_max, log_sum = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(row_max, log_sum)
    ctx.save_for_backward(logits, targets, inverse_temperature, mask, keep_mask, row_max, log_sum, entropy)


def _statistics_backward(ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None, *_: Any) -> Any:
    nothing = (None,) * 5
    if grad_logprobs is None and grad_entropy is None:
        return None, *nothing
    *tokens, keep_mask, row_max, log_sum, entropy = ctx.saved_tensors
    grads = (torch.zeros_like(entropy) if g is None else g.contiguous() for g in (grad_logprobs, grad_entropy))
    return ops.logprobs_entropy_gradient(*tokens, ctx.softcap, keep_mask, row_max, log_sum, entropy, *grads), *nothing


ops.logprobs_entropy.register_autograd(_statistics_backward, setup_context=_save_statistics)


def _save_divergence(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[4:])
    ctx.save_for_backward(*inputs, *output)


def _divergence_backward(ctx: Any, *upstream: Tensor | None) -> Any:
    wants = ctx.needs_input_grad[:2]
    if all(g is None for g in upstream[:4]):
        return None, None, None, None
    saved = ctx.saved_tensors
    vectors = (torch.zeros_like(saved[4]) if g is None else g.contiguous() for g in upstream[:4])
    grads = ops.divergence_gradient(*saved, *vectors, *wants)
    return *(grad if wanted else None for grad, wanted in zip(grads, wants, strict=True)), None, None


ops.divergence.register_autograd(_divergence_backward, setup_context=_save_divergence)


class _Loss(torch.autograd.Function):
    """Not a formula of the op, which would have to give away as an output what backward then changes."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, inplace: bool, *arguments: Any) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.inplace, ctx.spent, ctx.formed = inplace, False, None
        data = logits.detach()
        if logits.dtype in GRADIENT_IN_BACKWARD:
            rows = ops.dual_mode_loss(data, *arguments)
        elif inplace:
            rows, ctx.formed = ops.dual_mode_loss_with_gradient_(data, *arguments), data
        else:
            *rows, ctx.formed = ops.dual_mode_loss_with_gradient(data, *arguments)
        _, _, entropy, _, _, row_max, log_sum, grad_logprobs, grad_entropy = rows
        ctx.mark_non_differentiable(*rows[1:])
        kept = None if inplace and ctx.formed is not None else logits
        *tokens, ctx.softcap, keep_mask = arguments[:5]
        ctx.save_for_backward(kept, *tokens, keep_mask, row_max, log_sum, entropy, grad_logprobs, grad_entropy)
        return tuple(rows)

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor | None, *_: Any) -> Any:
        nothing = (None,) * (len(ctx.needs_input_grad) - 1)
        if grad_losses is None:
            return None, *nothing
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError("the dual-mode loss can be differentiated once: create_graph=True is not supported")
        if ctx.spent and ctx.inplace:
            raise RuntimeError(
                "second backward through a loss with inplace_gradient=True: its logits have become the gradient and "
                "are gone; use inplace_gradient=False to go backward more than once"
            )
        formed, ctx.formed, ctx.spent = ctx.formed, None, True
        if formed is not None:
            ops.scale_rows_(formed, grad_losses.contiguous())
            return formed, *nothing
        logits, *tokens, keep_mask, row_max, log_sum, entropy, grad_logprobs, grad_entropy = ctx.saved_tensors
        upstream = (grad_logprobs * grad_losses, grad_entropy * grad_losses)
        arguments = (*tokens, ctx.softcap, keep_mask, row_max, log_sum, entropy, *upstream)
        if not ctx.inplace:
            return ops.logprobs_entropy_gradient(logits.detach(), *arguments), *nothing
        data = logits.detach()
        ops.logprobs_entropy_gradient_(data, *arguments)
        return data, *nothing


_loss: Callable[..., tuple[Tensor, ...]] = _Loss.apply
