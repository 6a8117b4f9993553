"""How much each token of an optimizer batch counts: the loss types of TRL as weights."""

import torch
from torch import Tensor

LOSS_TYPES = ("grpo", "dapo", "dr_grpo", "bnpo")


def token_weights(
    mask: Tensor,  # (B, T) 0/1: every row of the optimizer batch of this process
    loss_type: str,
    *,
    max_completion_length: int | None,
    tokens: float | Tensor | None = None,  # valid tokens per process, the mean over processes; default mask.sum()
) -> Tensor:
    """Weights w (B, T): sum(w * loss), averaged over processes, is the loss of the whole batch.

    - grpo: mean over the tokens of each row, then over rows, `mask / len / B` (arXiv 2402.03300)
    - dapo: mean over all tokens, `mask / tokens` over all processes (arXiv 2503.14476)
    - bnpo: mean over the tokens of this process alone, `mask / mask.sum()`; TRL's is over a micro-batch, which makes
    the gradient depend on how the batch is cut, so with one process it is the same as dapo here
    - dr_grpo: `mask / (B * max_completion_length)`, a constant (arXiv 2503.20783)

    An empty row counts as a row. ValueError: another loss_type, dr_grpo without max_completion_length.
    """
    mask = mask if mask.dtype == torch.float64 else mask.float()
    rows = mask.shape[0]
    if loss_type == "grpo":
        return mask / mask.sum(-1, keepdim=True).clamp(min=1) / rows
    if loss_type == "dr_grpo":
        if max_completion_length is None:
            raise ValueError("loss_type='dr_grpo' divides by max_completion_length, which is not given")
        return mask / (rows * max_completion_length)
    if loss_type == "dapo" and tokens is not None:
        return mask / torch.as_tensor(tokens, dtype=mask.dtype, device=mask.device).clamp(min=1e-6)
    if loss_type in ("dapo", "bnpo"):
        return mask / mask.sum().clamp(min=1)
    raise ValueError(f"loss_type={loss_type!r} must be one of {', '.join(map(repr, LOSS_TYPES))}")
