"""What a token of a borrowed response weighs: forms of the correction for the mode that wrote it.

Each is a function of the ratio x = pi_receiving(o_t) / pi_writing(o_t), both old, and of the response's correctness.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Form = Callable[[Tensor, Tensor, float], Tensor]


def truncated(ratio: Tensor, correctness: Tensor, gamma: float) -> Tensor:
    """min(1, x)"""
    return ratio.clamp(max=1.0)


def positive(ratio: Tensor, correctness: Tensor, gamma: float) -> Tensor:
    """1 where the response has a positive advantage, min(1, x) elsewhere."""
    return torch.where(correctness > 0, 1.0, truncated(ratio, correctness, gamma))


def shaped(ratio: Tensor, correctness: Tensor, gamma: float) -> Tensor:
    """x / (x + gamma), arXiv 2504.14945: below 1, and far above x for what the receiving mode would hardly write."""
    return 1 / (1 + gamma / ratio)  # the same, and 1 where the ratio is infinite


FORMS: dict[str, Form | None] = {"none": None, "truncated": truncated, "positive": positive, "shaped": shaped}


def share_weights(
    form: str,
    logprobs: Tensor,  # (2, 2, P, n, T) blocks of dual_mode_advantages, nats
    correctness: Tensor,  # (2, 2, P, n, 1)
    gamma: float,
    own: Tensor | None = None,  # (2, 2, P, n) bool; None: the first along the first axis
) -> Tensor | float:
    """Of borrowed responses those of the form, 1 of own ones: (2, 2, P, n, T), or the number 1 for "none"."""
    weigh = FORMS[form]
    if weigh is None:
        return 1.0
    weights = weigh((logprobs - logprobs.flip(0, 1)).exp(), correctness, gamma)
    if own is None:
        return torch.cat((torch.ones_like(weights[:1]), weights[1:]))
    return torch.where(own[..., None], 1.0, weights)
