"""The backward of every operation.

The loss forms its gradient in forward, while the row is at hand; backward multiplies it by the upstream gradient in
place. It can be used once: a second backward computes afresh from the logits, which are kept for it. Two exceptions:
float16, whose range would lose a small gradient before a loss scale reaches it, forms it in backward; and the in-place
form, which has given the logits away, raises on a second backward.
"""

import torch
from torch import Tensor

from . import ops

GRADIENT_IN_BACKWARD = (torch.float16,)


def loss_rows(logits: Tensor, *arguments, inplace_gradient: bool = False) -> tuple[Tensor, ...]:
    """The nine vectors of `reference.LossRows`; losses are differentiable in logits, the rest is detached."""
    if not (torch.is_grad_enabled() and logits.requires_grad):
        return ops.dual_mode_loss(logits, *arguments)
    if inplace_gradient:
        return _InplaceLoss.apply(logits, *arguments)
    if logits.dtype in GRADIENT_IN_BACKWARD:
        return ops.dual_mode_loss(logits, *arguments)
    return ops.dual_mode_loss_with_gradient(logits, *arguments)[:9]


def _save_statistics(ctx, inputs, output):
    logits, targets, inverse_temperature, mask = inputs
    _, entropy, row_max, log_sum = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(row_max, log_sum)
    ctx.save_for_backward(logits, targets, inverse_temperature, mask, row_max, log_sum, entropy)


def _statistics_backward(ctx, grad_logprobs, grad_entropy, *_):
    if grad_logprobs is None and grad_entropy is None:
        return None, None, None, None
    entropy = ctx.saved_tensors[-1]
    grads = (torch.zeros_like(entropy) if g is None else g.contiguous() for g in (grad_logprobs, grad_entropy))
    return ops.logprobs_entropy_gradient(*ctx.saved_tensors, *grads), None, None, None


def _save_loss(ctx, inputs, output):
    logits, targets, inverse_temperature, mask = inputs[:4]
    _, _, entropy, _, _, row_max, log_sum, grad_logprobs, grad_entropy = output[:9]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(
        logits, targets, inverse_temperature, mask, row_max, log_sum, entropy, grad_logprobs, grad_entropy
    )
    ctx.formed = output[9] if len(output) == 10 else None


def _loss_backward(ctx, grad_losses, *_):
    nothing = (None,) * 12
    if grad_losses is None:
        return None, *nothing
    formed, ctx.formed = ctx.formed, None
    if formed is not None:
        ops.scale_rows_(formed, grad_losses.contiguous())
        return formed, *nothing
    return ops.logprobs_entropy_gradient(*_unit_gradient(ctx, grad_losses)), *nothing


def _unit_gradient(ctx, grad_losses: Tensor) -> tuple:
    """The arguments of logprobs_entropy_gradient: the row's own factors times the upstream gradient."""
    *statistics, grad_logprobs, grad_entropy = ctx.saved_tensors
    return *statistics, grad_logprobs * grad_losses, grad_entropy * grad_losses


class _InplaceLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, *arguments):
        ctx.set_materialize_grads(False)
        ctx.spent = False
        data = logits.detach()
        if logits.dtype in GRADIENT_IN_BACKWARD:
            rows = ops.dual_mode_loss(data, *arguments)
            _save_loss_inplace(ctx, arguments, rows)
        else:
            rows = ops.dual_mode_loss_with_gradient_(data, *arguments)
        ctx.data = data
        ctx.mark_non_differentiable(*rows[1:])
        return rows

    @staticmethod
    def backward(ctx, grad_losses, *_):
        nothing = (None,) * 12
        if grad_losses is None:
            return None, *nothing
        if ctx.spent:
            raise RuntimeError(
                "second backward through a loss with inplace_gradient=True: its logits have become the gradient and "
                "are gone; use inplace_gradient=False to go backward more than once"
            )
        ctx.spent = True
        data, ctx.data = ctx.data, None
        if data.dtype in GRADIENT_IN_BACKWARD:
            ops.logprobs_entropy_gradient_(data, *_unit_gradient(ctx, grad_losses))
        else:
            ops.scale_rows_(data, grad_losses.contiguous())
        return data, *nothing


def _save_loss_inplace(ctx, arguments, rows):
    _, _, entropy, _, _, row_max, log_sum, grad_logprobs, grad_entropy = rows
    ctx.save_for_backward(*arguments[:3], row_max, log_sum, entropy, grad_logprobs, grad_entropy)


ops.logprobs_entropy.register_autograd(_statistics_backward, setup_context=_save_statistics)
ops.dual_mode_loss.register_autograd(_loss_backward, setup_context=_save_loss)
ops.dual_mode_loss_with_gradient.register_autograd(_loss_backward, setup_context=_save_loss)
