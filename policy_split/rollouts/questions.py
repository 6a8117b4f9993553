"""A rollout by questions: the rows of some, micro-batches that cut none, and which are measured though none trains."""

from collections.abc import Sequence

import torch
from torch import Tensor

from policy_split.config import PolicySplitConfig

from .micro_batches import in_order
from .rollout import Rollout

MEASURED = 4  # questions without a gradient, of those in a process, whose entropies and KLs stand for all of them


def rows_of_questions(rollout: Rollout, questions: Sequence[int]) -> list[int]:
    """Their rows in the rollout's order: block by block, and question by question inside a block."""
    n, half = rollout.num_generations, rollout.num_prompts * rollout.num_generations
    starts = (block * half + question * n for block in range(len(rollout.blocks)) for question in questions)
    return [row for start in starts for row in range(start, start + n)]


def question_batches(rollout: Rollout, questions: Sequence[int], config: PolicySplitConfig) -> list[list[int]]:
    """Micro-batches of whole questions, those with the longest responses first; at least one question in each.

    Inside a micro-batch the rows lie as `cut` lays them.
    """
    rows = {question: rows_of_questions(rollout, [question]) for question in questions}
    longest = {q: max(rollout.completion_lengths[row] for row in rows[q]) for q in questions}
    ordered = sorted(questions, key=lambda q: -longest[q])
    at_once = max(1, config.per_device_train_batch_size // (len(rollout.blocks) * rollout.num_generations))
    parts = (ordered[start : start + at_once] for start in range(0, len(ordered), at_once))
    paired = config.exact_kl
    return [in_order(rollout, sorted(row for q in part for row in rows[q]), paired=paired) for part in parts]


def measured_questions(idle: Sequence[int], seed: int) -> list[int]:
    """MEASURED of the questions that do not train, drawn without replacement; all of them if there are no more."""
    order = torch.randperm(len(idle), generator=torch.Generator().manual_seed(seed)).tolist()
    return sorted(idle[place] for place in order[:MEASURED])


def score_weights(rollout: Rollout, live: Sequence[int], idle: Sequence[int], measured: Sequence[int]) -> Tensor:
    """(rows,) how many rows each stands for in a sum over all of them: E[sum of weight * x] is the sum of x.

    1 for the rows of live questions, len(idle) / len(measured) for those of measured ones, 0 for the others.
    """
    weights = torch.zeros(len(rollout.mode), device=rollout.mask.device)
    weights[rows_of_questions(rollout, live)] = 1.0
    if measured:
        weights[rows_of_questions(rollout, measured)] = len(idle) / len(measured)
    return weights
