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

# What a pair of tokens costs in rows with prompts of their own, which are gathered, over one behind a mask, on a CPU:
# python -m benchmarks.trainer.shared_prompts
REPEATED = 1.5
ARGUMENT = "shared_prompts"  # of the model's forward, handed on to the attention of every layer


class Reading(NamedTuple):
    """One call of attention: which of a batch's S tokens ask, row by row, and which they read."""

    queries: Tensor  # (n, q) places, behind a row's end those of another token
    keys: Tensor  # (n, k) places
    mask: Tensor | None  # (n, 1, q, k) bool: what is read; None: of its own row, each token itself and all before it


class PromptLayout(NamedTuple):
    """What attention does with the S tokens of a batch, and how its results are put back."""

    readings: tuple[Reading, ...]
    back: Tensor  # (S,) place of each token among all n * q of the readings


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
    """Attention pays for pairs of tokens, those that a mask takes away too: the form that costs less."""
    longest, width = max(prompts), max(inputs)
    whole = max(prompts[g] + n for g, n in zip(owner, inputs, strict=True))
    repeated = len(owner) * whole**2 / 2
    masked = len(prompts) * longest**2 / 2 + len(owner) * width * (longest + width)
    form = _repeated if REPEATED * repeated <= masked else _masked
    readings, back = form(prompts, prompt_starts, inputs, response_starts, torch.tensor(owner))
    readings = tuple(Reading(*(None if x is None else x.to(device) for x in reading)) for reading in readings)
    return PromptLayout(readings, back.to(device))


Parts = tuple[tuple[Reading, ...], Tensor]


def _repeated(
    prompts: list[int], prompt_starts: list[int], inputs: list[int], response_starts: list[int], owner: Tensor
) -> Parts:
    """Every row with a prompt of its own, causal and without a mask; a prompt's result is that of its first row."""
    before = torch.tensor(prompts)[owner][:, None]  # (B, 1)
    column = torch.arange(int((before[:, 0] + torch.tensor(inputs)).max()))
    of_response = torch.tensor(response_starts)[:, None] + column - before
    places = torch.where(column < before, torch.tensor(prompt_starts)[owner][:, None] + column, of_response)
    written = column < before + torch.tensor(inputs)[:, None]
    places = torch.where(written, places, 0)
    number = torch.arange(places.numel()).view_as(places)
    first = torch.stack([(owner == g).nonzero()[0, 0] for g in range(len(prompts))])
    of_prompts = number[first][column < torch.tensor(prompts)[:, None]]
    back = torch.cat((of_prompts, number[written & (column >= before)]))
    return (Reading(places, places, None),), back


def _masked(
    prompts: list[int], prompt_starts: list[int], inputs: list[int], response_starts: list[int], owner: Tensor
) -> Parts:
    """Prompts once, causal; then responses, whose mask leaves their prompt and what they have written."""
    heads, of_prompt = _rows(prompt_starts, prompts)
    tails, written = _rows(response_starts, inputs)
    width = tails.shape[1]
    own = torch.ones(width, width, dtype=torch.bool).tril().expand(len(inputs), width, width)
    mask = torch.cat((of_prompt[owner][:, None].expand(-1, width, -1), own), -1)[:, None]
    readings = (Reading(heads, heads, None), Reading(tails, torch.cat((heads[owner], tails), 1), mask))
    back = torch.cat((of_prompt.flatten().nonzero(), of_prompt.numel() + written.flatten().nonzero())).squeeze(-1)
    return readings[: 1 + bool(width)], back


def _rows(starts: list[int], lengths: list[int]) -> tuple[Tensor, Tensor]:
    """(n, longest) places of rows that begin at starts, 0 behind their ends; (n, longest) bool, what is not behind."""
    inside = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.where(inside, torch.tensor(starts)[:, None] + torch.arange(max(lengths)), 0), inside
