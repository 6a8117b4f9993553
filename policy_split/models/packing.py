"""Whether a model keeps packed sequences apart: measured on two short ones, not believed."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .batches import Batch, PackedBatch, PaddedBatch

PROMPT, RESPONSE = 1, 6  # tokens of each of two sequences: every position is looked at, a convolution reaches few
SHIFT = 1 / 4  # of what another first token does: rounding is less, wrong positions are more


def packing_fault(logits_of: Callable[[Batch], Tensor], embeddings: nn.Embedding, arguments: set[str]) -> str | None:
    """What goes wrong where the model is given packed sequences; None: nothing does.

    The gradient of one sequence's logits must be exactly 0 in the other's embeddings, which needs no tolerance, in
    whatever dtype; and both must have the logits of padded batches. logits_of: of a batch, with a gradient, as
    `Policy.completion_logits` gives them. arguments: names that the model's forward takes.
    """
    if "position_ids" not in arguments:
        return "its forward takes no position_ids"
    vocabulary, device = embeddings.num_embeddings, embeddings.weight.device
    ids = torch.full((2, PROMPT + RESPONSE), vocabulary // 2, device=device)
    changed = ids.clone()
    changed[:, 0] = vocabulary // 3

    def logits(kind: type[Batch], ids: Tensor) -> Tensor:
        """(2, T, V)."""
        batch = kind([0, 1], ids[:, :PROMPT], ids[:, PROMPT:], [PROMPT] * 2, [RESPONSE] * 2)
        return logits_of(batch).float().view(2, RESPONSE, -1)

    embedded: list[Tensor] = []  # (1, S, D)

    def leaf(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    try:
        with torch.enable_grad():
            hook = embeddings.register_forward_hook(leaf)
            try:
                packed = logits(PackedBatch, ids)
            finally:
                hook.remove()
            gradients = [torch.autograd.grad(own.sum(), embedded, retain_graph=True) for own in packed]
            reached = [torch.stack([x.abs().sum(-1) for x in each]).sum(0).view(2, -1) for each in gradients]
        with torch.no_grad():
            padded = logits(PaddedBatch, ids)
            by_own = (logits(PaddedBatch, changed) - padded).abs().max()
    except Exception as error:
        return f"its forward does not take them ({type(error).__name__}: {error})"
    if any(bool(reached[sequence][1 - sequence].any()) for sequence in (0, 1)):
        return "one sequence reads the other"
    if not (packed - padded).abs().max() <= SHIFT * by_own:
        return "a sequence has other logits than alone"
    return None
