"""The dual-mode entropy bonus as a differentiable term of the loss, where regularizer="loss".

Of each token with weight w, mode m and other mode m' on the same response, in nats:

    -w * scale[m] * (H(pi_m) + (1 - alpha) * KL(pi_m || sg(pi_m')))        sg(x): x without its gradient

with the mode's scale of `advantages.mode_scales`: the bonus of arXiv 2604.11510 (eq. 4-6) in expectation over the
vocabulary. The kernel of the policy loss forms the entropy's gradient (`entropy_coefficients`), `mode_push` the KL's.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from policy_split.algorithms.advantages import mode_scales
from policy_split.config import PolicySplitConfig
from policy_split.modes import MODES
from policy_split_kernels.divergence import mode_divergence


def loss_scales(config: PolicySplitConfig) -> tuple[float, float]:
    """Scale of each mode's bonus in the loss: 0 where the bonus is a part of the advantage."""
    return mode_scales(config.eta, config.eta_normal) if config.regularizer == "loss" else (0.0, 0.0)


def entropy_coefficients(config: PolicySplitConfig) -> tuple[float, float]:
    """Each mode's entropy_coef of `dual_mode_loss`: the entropy term's own and that of the bonus."""
    normal, high = loss_scales(config)
    return config.entropy_coef_normal + normal, config.entropy_coef_high_entropy + high


def push_coefficients(config: PolicySplitConfig) -> tuple[float, float]:
    """Each mode's coefficient of `mode_push`."""
    normal, high = loss_scales(config)
    return (1 - config.alpha) * normal, (1 - config.alpha) * high


def mode_push(
    logits: Tensor,  # (2*B, ..., V) of both modes: as micro_batches.cut pairs the rows, padded or packed
    weights: Tensor,  # (2*B, ...)
    mask: Tensor,  # (2*B, ...)
    coefficients: Sequence[float],  # in the modes' order
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """The KL part of the bonus: (the logits to go on with, a scalar loss).

    The same as::

        normal, high = torch.log_softmax(logits.float() / temperature, -1).chunk(2)
        kl_normal = (normal.exp() * (normal - high.detach())).sum(-1)
        kl_high = (high.exp() * (high - normal.detach())).sum(-1)
        kl = torch.cat((coefficients[0] * kl_normal, coefficients[1] * kl_high))
        loss = -(weights * kl).sum()  # over mask

    Its gradient is formed at once and added, in place, to the one that reaches the returned logits: whoever reads those
    may overwrite them, and there is no second matrix of a gradient. A mode whose coefficient is 0 costs nothing.
    """
    if not any(coefficients):
        return logits, torch.zeros((), device=logits.device)
    if logits.dtype == torch.float16:
        logits = logits.float()  # a gradient formed before the loss scale reaches it would be lost in float16
    return _push(logits, weights, mask, coefficients, temperature)


class _Push(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, weights: Tensor, mask: Tensor, coefficients: Sequence[float], temperature: float
    ) -> tuple[Tensor, Tensor]:
        ctx.gradients, losses = [None, None], []
        halves, weights_of, mask_of = logits.detach().chunk(2), weights.chunk(2), mask.chunk(2)
        for mode in MODES:
            if coefficients[mode]:
                own, other = halves[mode].detach().requires_grad_(), halves[1 - mode]
                with torch.enable_grad():
                    kl = mode_divergence(own, other, temperature=temperature, mask=mask_of[mode]).kl_ab
                    total = -coefficients[mode] * (weights_of[mode] * kl).sum()
                (ctx.gradients[mode],) = torch.autograd.grad(total, own)
                losses.append(total.detach())
        return logits.detach(), torch.stack(losses).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_logits: Tensor, upstream: Tensor) -> tuple[Tensor | None, ...]:
        for half, gradient in zip(grad_logits.chunk(2), ctx.gradients, strict=True):
            if gradient is not None:
                half.addcmul_(gradient, upstream)
        return grad_logits, None, None, None, None


_push: Callable[..., tuple[Tensor, Tensor]] = _Push.apply
