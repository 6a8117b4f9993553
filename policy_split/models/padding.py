"""Whether a model leaves the padding in front of a short prompt unread: measured on two short rows, not believed."""

from collections.abc import Callable

import torch
from torch import Tensor

from .batches import PaddedBatch
from .packing import SHIFT

PROMPT, RESPONSE = 6, 4  # tokens of the long prompt, and of both responses


def check_padding(name: str, logits_of: Callable[[PaddedBatch], Tensor], vocabulary: int, device: torch.device) -> None:
    """ValueError that names a model which reads the padding."""
    fault = padding_fault(logits_of, vocabulary, device)
    if fault is not None:
        raise ValueError(
            f"{name} does not honour its attention mask: {fault}. Prompts of both modes differ in length, and its "
            f"responses would be sampled and scored behind padding that it reads; choose a model that takes an "
            f"attention_mask"
        )


def padding_fault(logits_of: Callable[[PaddedBatch], Tensor], vocabulary: int, device: torch.device) -> str | None:
    """What goes wrong where a prompt of one token stands beside a longer one; None: nothing does.

    The short row must have the logits that it has alone. logits_of: of a batch, as `Policy.completion_logits` gives
    them.
    """
    prompts = torch.full((2, PROMPT), vocabulary // 2, device=device)
    responses = torch.full((2, RESPONSE), vocabulary // 4, device=device)
    changed = prompts.clone()
    changed[:, -1] = vocabulary // 3

    def short(rows: list[int], ids: Tensor) -> Tensor:
        """(T, V) of the row whose prompt is its last token alone."""
        batch = PaddedBatch(rows, ids, responses, [PROMPT, 1], [RESPONSE] * 2)
        return logits_of(batch)[-1].float()

    alone, beside, other = short([1], prompts), short([0, 1], prompts), short([1], changed)
    moved, by_own = (float((x - alone).abs().max()) for x in (beside, other))
    if moved <= SHIFT * by_own:
        return None
    return f"a longer prompt beside a row moves its logits by {moved:.2g}, another token of its own by {by_own:.2g}"
