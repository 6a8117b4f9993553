"""The tokens that filtered sampling keeps, so that log-probs can be those of the distribution that was sampled."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Warper = Callable[[Any, Any], Tensor]  # (token ids, which none of them reads; scores)
CHUNK = 1024  # rows that are sorted at once


@torch.no_grad()
def sampling_mask(
    logits: Tensor,  # (..., V)
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Tensor:
    """Where the filters of `model.generate` leave a token: bool (..., V), the `keep_mask` of log-probs and loss.

    The same as transformers' warpers one after the other, in its order (temperature, top_k, top_p, min_p). Left out are
    None, and as in `generate` a top_k of 0 and a top_p of 1; with none of them everything is kept. A bad value raises
    the warper's ValueError.
    """
    from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    filters: list[tuple[Callable[[Any], Warper], float | None, float | None]] = [
        (TopKLogitsWarper, top_k, 0),
        (TopPLogitsWarper, top_p, 1.0),
        (MinPLogitsWarper, min_p, None),
    ]
    warpers = [make(value) for make, value, off in filters if value is not None and value != off]
    rows = logits.reshape(-1, logits.shape[-1])
    keep = torch.ones(rows.shape, dtype=torch.bool, device=logits.device)
    for start in range(0, len(rows) if warpers else 0, CHUNK):
        scores = rows[start : start + CHUNK].float() / temperature
        for warper in warpers:
            scores = warper(None, scores)
        keep[start : start + CHUNK] = scores != -torch.inf
    return keep.view(logits.shape)
