"""The baselines' losses of one token, made for `linear_token_loss`: factories that capture the batch's flat vectors.

Each returns `loss_fn(logprobs (n,), entropy (n,), index (n,)) -> losses (n,)`, unweighted, for the tokens at the places
`index` of the N that it was made of. rho_t = exp(log p_t - old log p_t); with old_logprobs=None the policy is still the
one that sampled, and rho is 1 with a gradient. Log-probs are in nats. sg(x) is x without its gradient.

While rho is 1 nothing is clipped and |log rho| has no gradient: `kl_cov_loss` and `ce_gppo_loss` then are the plain
policy gradient, and differ from GRPO only in later updates on the same rollout.
"""

from collections.abc import Callable

import torch
from torch import Tensor

TokenLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


def clipped_loss(
    advantages: Tensor,  # (N,)
    old_logprobs: Tensor | None = None,  # (N,)
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> TokenLoss:
    """-min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), the loss of PPO and GRPO.

    Vectors (N,), of any dtype, taken without their gradients. ValueError: another shape, a negative clip range.
    Source: arXiv 1707.06347 eq. 7; clip_high above clip_low is Clip-Higher, arXiv 2503.14476 eq. 10.
    """
    _check_clip(clip_low, clip_high)
    take = _vectors(advantages, old_logprobs)

    def loss_fn(logprobs: Tensor, entropy: Tensor, index: Tensor) -> Tensor:
        a, old = take(index)
        bound, clipped = clip(logprobs, a, old, clip_low, clip_high)
        return -torch.where(clipped, bound, _ratio(logprobs, old, clipped)) * a

    return loss_fn


def clip_cov_loss(
    advantages: Tensor,  # (N,)
    old_logprobs: Tensor | None,  # (N,)
    dropped: Tensor,  # (N,) bool, of clip_cov_mask
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> TokenLoss:
    """`clipped_loss`, but 0 without a gradient for the dropped tokens.

    Shapes and errors as there. Source: Clip-Cov, arXiv 2505.22617.
    """
    _check_clip(clip_low, clip_high)
    take = _vectors(advantages, old_logprobs, dropped=dropped)

    def loss_fn(logprobs: Tensor, entropy: Tensor, index: Tensor) -> Tensor:
        (a, old), gone = take(index), dropped[index]
        bound, clipped = clip(logprobs, a, old, clip_low, clip_high)
        objective = torch.where(clipped, bound, _ratio(logprobs, old, clipped | gone)) * a
        return torch.where(gone, 0.0, -objective)

    return loss_fn


def kl_cov_loss(
    advantages: Tensor,  # (N,)
    old_logprobs: Tensor | None,  # (N,)
    penalised: Tensor,  # (N,) bool, of kl_cov_mask
    *,
    c: float = 1.0,
) -> TokenLoss:
    """-rho A + c |log p - old log p| for the penalised tokens, -rho A for the others: nothing is clipped.

    Shapes and errors as in `clipped_loss`; ValueError: c below 0. Source: KL-Cov, arXiv 2505.22617, and its code,
    which estimates the KL by the absolute difference.
    """
    if not c >= 0:
        raise ValueError(f"c={c!r} must be a number of at least 0")
    take = _vectors(advantages, old_logprobs, penalised=penalised)

    def loss_fn(logprobs: Tensor, entropy: Tensor, index: Tensor) -> Tensor:
        a, old = take(index)
        penalty = torch.where(penalised[index], _log_ratio(logprobs, old).abs(), 0.0)
        return -_log_ratio(logprobs, old).exp() * a + c * penalty

    return loss_fn


def ce_gppo_loss(
    advantages: Tensor,  # (N,)
    old_logprobs: Tensor | None = None,  # (N,)
    *,
    b1: float = 0.5,
    b2: float = 1.0,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> TokenLoss:
    """`clipped_loss` in which clipped tokens keep a bounded gradient.

    -b1 (1 - clip_low) rho / sg(rho) A for A < 0 and rho < 1 - clip_low, -b2 (1 + clip_high) rho / sg(rho) A for A > 0
    and rho > 1 + clip_high, else -rho A. Shapes and errors as in `clipped_loss`; ValueError: b1 or b2 below 0.
    Source: CE-GPPO, arXiv 2509.20712.
    """
    _check_clip(clip_low, clip_high)
    if not (b1 >= 0 and b2 >= 0):
        raise ValueError(f"b1={b1!r}, b2={b2!r} must be numbers of at least 0")
    take = _vectors(advantages, old_logprobs)

    def loss_fn(logprobs: Tensor, entropy: Tensor, index: Tensor) -> Tensor:
        a, old = take(index)
        bound, clipped = clip(logprobs, a, old, clip_low, clip_high)
        inside = clipped & logprobs.isfinite()  # -inf less -inf is NaN
        one = torch.where(inside, logprobs - logprobs.detach(), 0.0).exp()  # rho / sg(rho)
        kept = torch.where(a < 0, b1 * one, b2 * one) * bound
        return -torch.where(clipped, kept, _ratio(logprobs, old, clipped)) * a

    return loss_fn


def _log_ratio(logprobs: Tensor, old: Tensor | None) -> Tensor:
    return logprobs - (logprobs.detach() if old is None else old)


def _ratio(logprobs: Tensor, old: Tensor | None, constant: Tensor) -> Tensor:
    """rho, without a gradient where `constant`: cut off before exp, for 0 times an infinite rho would be NaN."""
    log_ratio = _log_ratio(logprobs, old)
    return torch.where(constant, log_ratio.detach(), log_ratio).exp()


@torch.no_grad()
def clip(
    logprobs: Tensor, advantages: Tensor, old: Tensor | None, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """(clip(rho), whether the clip takes the gradient away), both constants."""
    ratio = _log_ratio(logprobs, old).exp()
    bound = ratio.clamp(1 - clip_low, 1 + clip_high)
    return bound, bound * advantages < ratio * advantages


def _check_clip(clip_low: float, clip_high: float) -> None:
    if not (0 <= clip_low <= 1 and clip_high >= 0):
        raise ValueError(f"clip_low={clip_low!r} must be in [0, 1], clip_high={clip_high!r} at least 0")


def _vectors(
    advantages: Tensor, old_logprobs: Tensor | None, **masks: Tensor
) -> Callable[[Tensor], tuple[Tensor, Tensor | None]]:
    """A look-up of advantages and old log-probs at an index; ValueError unless all vectors are (N,)."""
    vectors = {"advantages": advantages, "old_logprobs": old_logprobs, **masks}
    shapes = {name: tuple(x.shape) for name, x in vectors.items() if x is not None}
    if len(set(shapes.values())) > 1 or len(shapes["advantages"]) != 1:
        given = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"expected flat vectors of one length (N,), got {given}")
    a, old = advantages.detach(), None if old_logprobs is None else old_logprobs.detach()
    return lambda index: (a[index], None if old is None else old[index])
