"""Rows of a rollout as one forward of a model, and its results as a table again: with padding, or without.

    PaddedBatch   (B, L+T): prompts padded on the left, responses on the right
    PackedBatch   (1, S): the same sequences behind each other, told apart by positions that start again at 0

Both take tables (R, T) of the rollout to the layout of the scored tokens, (B, T) or (N,), and back to (B, T).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

FLASH_ATTENTION_ARGUMENTS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


class PaddedBatch:
    """B rows cut to their longest prompt (L) and response (T).

    inputs: input_ids (B, L+T-1), without the last token, which predicts nothing that is scored; logits_to_keep; where
    prompts differ in length, attention_mask and position_ids. What stands behind a causal row does not reach it.
    """

    def __init__(
        self,
        rows: Sequence[int],
        prompt_ids: Tensor,  # (R, L) padded on the left
        completion_ids: Tensor,  # (R, T) padded on the right
        prompt_lengths: Sequence[int],  # (R,)
        completion_lengths: Sequence[int],  # (R,)
    ):
        self.rows, self.index = list(rows), torch.tensor(rows, device=prompt_ids.device)
        self.length = max(completion_lengths[row] for row in rows)
        prompt = max(prompt_lengths[row] for row in rows)
        prompts = prompt_ids[self.index, prompt_ids.shape[1] - prompt :]
        input_ids = torch.cat((prompts, completion_ids[self.index, : self.length]), 1)[:, :-1]
        self.inputs: dict[str, Any] = {"input_ids": input_ids, "logits_to_keep": self.length}
        padding = [prompt - prompt_lengths[row] for row in rows]
        if any(padding):
            starts = torch.tensor(padding, device=input_ids.device)[:, None]
            ends = torch.tensor([[prompt + completion_lengths[row]] for row in rows], device=input_ids.device)
            steps = torch.arange(input_ids.shape[1], device=input_ids.device)
            mask = ((steps >= starts) & (steps < ends)).long()
            self.inputs |= {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}

    def predictions(self, states: Tensor) -> Tensor:
        """(B, T, ...): the states that predict responses, of all positions or of those that logits_to_keep left."""
        return states[:, -self.length :]

    def gather(self, table: Tensor) -> Tensor:
        """(B, T) of a table (R, T)."""
        return table[self.index, : self.length]

    def scatter(self, values: Tensor) -> Tensor:
        """(B, T) of values (B, T)."""
        return values


class PackedBatch:
    """B rows without padding: N tokens of responses among the S that the model sees.

    inputs: input_ids and position_ids (1, S), without the last token of each row; logits_to_keep (N,): the positions
    that predict responses; and for flash attention the rows' bounds (B + 1,) and greatest length, which it would
    otherwise find in position_ids, at a host synchronisation in each layer. Other attention makes a block-diagonal
    (S, S) mask of position_ids. Everything is laid out from lengths on the host.
    """

    def __init__(
        self,
        rows: Sequence[int],
        prompt_ids: Tensor,  # (R, L) padded on the left
        completion_ids: Tensor,  # (R, T) padded on the right
        prompt_lengths: Sequence[int],  # (R,)
        completion_lengths: Sequence[int],  # (R,)
    ):
        device, width = prompt_ids.device, prompt_ids.shape[1]
        self.rows, self.index = list(rows), torch.tensor(rows, device=device)
        prompts, responses = ([lengths[row] for row in rows] for lengths in (prompt_lengths, completion_lengths))
        self.length = max(responses)
        ids = torch.cat((prompt_ids[self.index], completion_ids[self.index, : self.length]), 1)  # (B, L+T)
        lengths = [prompt + response - 1 for prompt, response in zip(prompts, responses, strict=True)]
        bounds = torch.tensor([0, *lengths]).cumsum(0)
        tokens = ranges([row * ids.shape[1] + width - prompt for row, prompt in enumerate(prompts)], lengths)
        kept = ranges([end - length for end, length in zip(bounds[1:].tolist(), responses, strict=True)], responses)
        self.places = ranges([row * self.length for row in range(len(rows))], responses).to(device)  # (N,) in (B, T)
        self.inputs: dict[str, Any] = {
            "input_ids": ids.flatten()[tokens.to(device)][None],
            "position_ids": ranges([0] * len(lengths), lengths).to(device)[None],
            "logits_to_keep": kept.to(device),
        }
        bounds, longest = bounds.int().to(device), max(lengths)
        self.inputs |= dict(zip(FLASH_ATTENTION_ARGUMENTS, (bounds, bounds, longest, longest), strict=True))

    def predictions(self, states: Tensor) -> Tensor:
        """(N, ...): the states that predict responses, of all positions or of those that logits_to_keep left."""
        states, kept = states[0], self.inputs["logits_to_keep"]
        return states if len(states) == len(kept) else states[kept]

    def gather(self, table: Tensor) -> Tensor:
        """(N,) of a table (R, T)."""
        return table[self.index, : self.length].flatten()[self.places]

    def scatter(self, values: Tensor) -> Tensor:
        """(B, T) of values (N,), 0 behind the end of each response."""
        table = values.new_zeros(len(self.rows), self.length)
        table.view(-1)[self.places] = values
        return table


Batch = PaddedBatch | PackedBatch  # and its kin


def ranges(starts: Sequence[int] | Tensor, lengths: Sequence[int] | Tensor) -> Tensor:
    """start, start + 1, ... of each length, behind each other: (sum(lengths),)."""
    counts = torch.as_tensor(lengths)
    ends = counts.cumsum(0)
    return torch.arange(int(ends[-1])) + (torch.as_tensor(starts) - ends + counts).repeat_interleave(counts)
