"""Rows behind one copy of their prompt: the prompt's forward and backward are paid once for all of its responses.

    SharedPromptBatch   (1, S): each prompt once, then all responses, whose positions go on from their prompt

Linear layers see S tokens; attention is that of the rows alone: a response reads its prompt and itself
(`prompt_attention`).
"""

from collections.abc import Sequence
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

    def to(self, device: torch.device) -> "Reading":
        mask = None if self.mask is None else self.mask.to(device)
        return Reading(self.queries.to(device), self.keys.to(device), mask)


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
        groups: Sequence[int],  # (R,)
    ):
        device, width = prompt_ids.device, prompt_ids.shape[1]
        self.rows, self.index = list(rows), torch.tensor(rows, device=device)
        _, owner = torch.tensor([groups[row] for row in rows]).unique(return_inverse=True)
        count = int(owner.max()) + 1
        first = torch.full((count,), len(owner)).scatter_reduce(0, owner, torch.arange(len(owner)), "amin")
        prompts = torch.tensor([prompt_lengths[row] for row in rows])[first]  # (G,)
        lengths = torch.tensor([completion_lengths[row] for row in rows])  # (B,)
        self.length = int(lengths.max())
        inputs = lengths - 1  # the last token predicts nothing that is scored
        sizes = torch.cat((prompts, inputs))
        prompt_starts, response_starts = (sizes.cumsum(0) - sizes).split((count, len(owner)))

        heads = prompt_ids[self.index[first.to(device)]].flatten()
        heads = heads[ranges(torch.arange(1, count + 1) * width - prompts, prompts).to(device)]
        padded_starts = torch.arange(len(owner)) * self.length
        tails = completion_ids[self.index, : self.length].flatten()
        tails = tails[ranges(padded_starts, inputs).to(device)]
        positions = torch.cat((ranges(torch.zeros_like(prompts), prompts), ranges(prompts[owner], inputs)))
        kept = ranges(response_starts - 1, lengths)
        kept[lengths.cumsum(0) - lengths] = (prompt_starts + prompts - 1)[owner]
        self.places = ranges(padded_starts, lengths).to(device)  # (N,) in (B, T)
        self.inputs: dict[str, Any] = {
            "input_ids": torch.cat((heads, tails))[None],
            "position_ids": positions.to(device)[None],
            "logits_to_keep": kept.to(device),
            "attention_mask": torch.ones((1, 1, 1, 1), dtype=torch.bool, device=device),
            ARGUMENT: _layout(prompts, prompt_starts, inputs, response_starts, owner, device),
        }

    def predictions(self, states: Tensor) -> Tensor:
        """(N, ...): the states that logits_to_keep has left, which is asked of every model that shares prompts."""
        return states[0]


def _layout(
    prompts: Tensor, prompt_starts: Tensor, inputs: Tensor, response_starts: Tensor, owner: Tensor, device: torch.device
) -> PromptLayout:
    """Attention pays for pairs of tokens, those that a mask takes away too: the form that costs less."""
    longest, width = int(prompts.max()), int(inputs.max())
    repeated = len(owner) * int((prompts[owner] + inputs).max()) ** 2 / 2
    masked = len(prompts) * longest**2 / 2 + len(owner) * width * (longest + width)
    form = _repeated if REPEATED * repeated <= masked else _masked
    readings, back = form(prompts, prompt_starts, inputs, response_starts, owner)
    return PromptLayout(tuple(reading.to(device) for reading in readings), back.to(device))


Parts = tuple[tuple[Reading, ...], Tensor]


def _repeated(prompts: Tensor, prompt_starts: Tensor, inputs: Tensor, response_starts: Tensor, owner: Tensor) -> Parts:
    """Every row with a prompt of its own, causal and without a mask; a prompt's result is that of its first row."""
    before, ends = prompts[owner][:, None], (prompts[owner] + inputs)[:, None]  # (B, 1)
    column = torch.arange(int(ends.max()))
    of_prompt, of_response = prompt_starts[owner][:, None] + column, response_starts[:, None] + column - before
    places = torch.where(column < before, of_prompt, of_response)
    inside = column < ends
    number = inside.flatten().nonzero().squeeze(-1)
    tokens = int(prompts.sum() + inputs.sum())
    back = torch.full((tokens,), inside.numel()).scatter_reduce(0, places[inside], number, "amin")
    places = torch.where(inside, places, 0)
    return (Reading(places, places, None),), back


def _masked(prompts: Tensor, prompt_starts: Tensor, inputs: Tensor, response_starts: Tensor, owner: Tensor) -> Parts:
    """Prompts once, causal; then responses, whose mask leaves their prompt and what they have written."""
    heads, of_prompt = _rows(prompt_starts, prompts)
    tails, written = _rows(response_starts, inputs)
    width = tails.shape[1]
    own = torch.ones(width, width, dtype=torch.bool).tril().expand(len(inputs), width, width)
    mask = torch.cat((of_prompt[owner][:, None].expand(-1, width, -1), own), -1)[:, None]
    readings = (Reading(heads, heads, None), Reading(tails, torch.cat((heads[owner], tails), 1), mask))
    back = torch.cat((of_prompt.flatten(), written.flatten())).nonzero().squeeze(-1)
    return readings[: 1 + bool(width)], back


def _rows(starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """(n, longest) places of rows that begin at starts, 0 behind their ends; (n, longest) bool, what is not behind."""
    column = torch.arange(int(lengths.max()))
    inside = column < lengths[:, None]
    return torch.where(inside, starts[:, None] + column, 0), inside
