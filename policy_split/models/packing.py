"""Whether a model keeps packed sequences, or responses behind one prompt, apart: measured, not believed."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .batches import Batch, PackedBatch, PaddedBatch
from .shared_prompts import ARGUMENT, SharedPromptBatch

PROMPT, RESPONSE = 1, 6  # tokens of each of two sequences: every position is looked at, a convolution reaches few
TAIL = 4  # tokens of each of two responses behind one prompt
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


def sharing_fault(logits_of: Callable[[Batch], Tensor], embeddings: nn.Embedding, arguments: set[str]) -> str | None:
    """What goes wrong where two responses stand behind one copy of their prompt; None: nothing does.

    As `packing_fault`: the gradient of one response's logits must be exactly 0 in the other's embeddings, and both must
    have the logits of padded batches.
    """
    missing = [name for name in ("position_ids", ARGUMENT, "logits_to_keep") if name not in arguments]
    if missing:
        return f"its forward takes no {missing[0]}"
    vocabulary, device = embeddings.num_embeddings, embeddings.weight.device
    prompt = torch.full((2, 2), vocabulary // 2, device=device)
    responses = torch.tensor([[vocabulary // 2] * TAIL, [vocabulary // 4] * TAIL], device=device)
    changed = prompt.clone()
    changed[:, 0] = vocabulary // 3
    sizes = ([2, 2], [TAIL, TAIL])
    embedded: list[Tensor] = []  # (1, S, D): the prompt, the first response, the second

    def leaf(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    try:
        with torch.enable_grad():
            hook = embeddings.register_forward_hook(leaf)
            try:
                batch = SharedPromptBatch([0, 1], prompt, responses, *sizes, groups=[0, 0])
                shared = logits_of(batch).float().view(2, TAIL, -1)
            finally:
                hook.remove()
            gradients = [torch.autograd.grad(own.sum(), embedded, retain_graph=True) for own in shared]
            reached = [torch.stack([x.abs().sum(-1) for x in each]).sum(0)[0, 2:].view(2, -1) for each in gradients]
        with torch.no_grad():
            padded, by_own = (
                logits_of(PaddedBatch([0, 1], ids, responses, *sizes)).float() for ids in (prompt, changed)
            )
    except Exception as error:
        return f"its forward does not take them ({type(error).__name__}: {error})"
    if any(bool(reached[row][1 - row].any()) for row in (0, 1)):
        return "one response reads the other"
    if not (shared - padded).abs().max() <= SHIFT * (by_own - padded).abs().max():
        return "a response has other logits than alone"
    return None
