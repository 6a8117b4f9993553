"""Rows behind one copy of their prompt: the prompt's forward and backward are paid once for all of its responses.

    SharedPromptBatch   (1, S): each prompt once, then all responses, whose positions go on from their prompt

Linear layers see S tokens; attention is that of the rows alone: a response reads its prompt and itself
(`prompt_attention`).
"""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .batches import PackedBatch, ranges

ARGUMENT = "shared_prompts"  # of the model's forward, handed on to the attention of every layer


class PromptLayout(NamedTuple):
    """Where the tokens of a batch lie among its S, as tables that attention reads and puts back."""

    prompts: Tensor  # (G, L) places, on the left those of another token where a prompt is shorter
    prompt_mask: Tensor  # (G, 1, L, L) bool: what a prompt's token reads
    responses: Tensor  # (B, T) places, on the right those of another token where a response is shorter
    response_mask: Tensor  # (B, 1, T, L + T) bool: what a response's token reads, of its prompt and of itself
    owner: Tensor  # (B,) which prompt a response goes on from
    back: Tensor  # (S,) place of each token among the G*L + B*T


class SharedPromptBatch(PackedBatch):
    """B rows of G prompts without padding: N tokens of responses among the S that the model sees.

    inputs: input_ids and position_ids (1, S), without the last token of each row; logits_to_keep (N,): the positions
    that predict responses, the last one of a prompt for each of its rows; the layout for attention, and a mask (1, 1,
    1, 1), which says that attention needs none made. Rows of one group have the same prompt.
    """

    def __init__(
        self,
        rows: Sequence[int],
        prompt_ids: Tensor,  # (R, L) padded on the left
        completion_ids: Tensor,  # (R, T) padded on the right
        prompt_lengths: Sequence[int],  # (R,)
        completion_lengths: Sequence[int],  # (R,)
        groups: Sequence[Hashable],  # (R,)
    ):
        self.rows = list(rows)
        device, width = prompt_ids.device, prompt_ids.shape[1]
        first = {groups[row]: row for row in reversed(self.rows)}  # a row of each prompt, in the order of the rows
        first = {key: first[key] for key in dict.fromkeys(groups[row] for row in self.rows)}
        place_of = {key: place for place, key in enumerate(first)}
        owner = [place_of[groups[row]] for row in self.rows]
        prompts = [prompt_lengths[row] for row in first.values()]
        lengths = [completion_lengths[row] for row in self.rows]
        self.length = max(lengths)
        inputs = [length - 1 for length in lengths]  # the last token predicts nothing that is scored
        starts = torch.tensor([0, *prompts, *inputs]).cumsum(0).tolist()
        prompt_starts, response_starts = starts[: len(prompts)], starts[len(prompts) : -1]

        heads = prompt_ids[list(first.values())].flatten()
        heads = heads[ranges([g * width + width - n for g, n in enumerate(prompts)], prompts).to(device)]
        tails = completion_ids[self.rows, : self.length].flatten()
        tails = tails[ranges([b * self.length for b in range(len(self.rows))], inputs).to(device)]
        positions = torch.cat((ranges([0] * len(prompts), prompts), ranges([prompts[g] for g in owner], inputs)))
        kept = [
            place
            for g, start, length in zip(owner, response_starts, lengths, strict=True)
            for place in (prompt_starts[g] + prompts[g] - 1, *range(start, start + length - 1))
        ]
        self.places = ranges([row * self.length for row in range(len(rows))], lengths).to(device)  # (N,) in (B, T)
        self.inputs: dict[str, Any] = {
            "input_ids": torch.cat((heads, tails))[None],
            "position_ids": positions.to(device)[None],
            "logits_to_keep": torch.tensor(kept, device=device),
            "attention_mask": torch.ones((1, 1, 1, 1), dtype=torch.bool, device=device),
            ARGUMENT: _layout(prompts, prompt_starts, inputs, response_starts, owner, device),
        }

    def predictions(self, states: Tensor) -> Tensor:
        """(N, ...): the states that logits_to_keep has left, which is asked of every model that shares prompts."""
        return states[0]


def _layout(
    prompts: list[int], prompt_starts: list[int], inputs: list[int], response_starts: list[int], owner: list[int],
    device: torch.device,
) -> PromptLayout:  # fmt: skip
    longest, width = max(prompts), max(inputs)
    lengths, sizes = torch.tensor(prompts)[:, None], torch.tensor(inputs)[:, None]
    steps, column = torch.arange(width), torch.arange(longest)
    inside = column >= longest - lengths  # (G, L)
    prompt_places = torch.where(inside, torch.tensor(prompt_starts)[:, None] + column - (longest - lengths), 0)
    written = steps < sizes  # (B, T)
    response_places = torch.where(written, torch.tensor(response_starts)[:, None] + steps, 0)
    causal = torch.ones(longest, longest, dtype=torch.bool).tril()
    # a padded token reads itself: a row of a softmax must not be empty
    prompt_mask = (causal & inside[:, None]) | torch.eye(longest, dtype=torch.bool)
    own = torch.ones(width, width, dtype=torch.bool).tril().expand(len(inputs), width, width)
    response_mask = torch.cat((inside[owner][:, None].expand(-1, width, -1), own), -1)
    back = torch.cat((inside.flatten().nonzero(), inside.numel() + written.flatten().nonzero())).squeeze(-1)
    tables = (prompt_places, prompt_mask[:, None], response_places, response_mask[:, None], torch.tensor(owner), back)
    return PromptLayout(*(table.to(device) for table in tables))
