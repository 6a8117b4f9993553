"""The rows of a rollout, cut into micro-batches and optimizer steps."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from policy_split.config import PolicySplitConfig

if TYPE_CHECKING:
    from .rollout import Rollout


def micro_batches(rollout: "Rollout", rows: Sequence[int], config: PolicySplitConfig) -> list[list[int]]:
    """The micro-batches of scoring and of the update alike."""
    return cut(rollout, rows, config.per_device_train_batch_size, paired=config.exact_kl)


def cut(rollout: "Rollout", rows: Sequence[int], size: int, *, paired: bool = False) -> list[list[int]]:
    """Micro-batches of at most `size` rows, longest responses first: little padding, the most memory at once.

    paired: of an even size, at least 2, rows of the normal mode first. Where `rows` holds both rows of each of its
    responses, the halves of every micro-batch are then the same responses in the same order under both prompts.
    """
    size = max(2, size - size % 2) if paired else size
    ordered = _longest_first(rollout, rows, paired)
    batches = (ordered[start : start + size] for start in range(0, len(ordered), size))
    return [in_order(rollout, batch, paired=paired) for batch in batches]


def in_order(rollout: "Rollout", rows: Sequence[int], *, paired: bool) -> list[int]:
    """The rows of one micro-batch as it wants them: longest responses first, inside each mode if paired."""
    ordered, half = _longest_first(rollout, rows, paired), rollout.num_prompts * rollout.num_generations
    return sorted(ordered, key=lambda row: rollout.blocks[row // half][0]) if paired else ordered


def _longest_first(rollout: "Rollout", rows: Sequence[int], paired: bool) -> list[int]:
    lengths = rollout.completion_lengths
    if paired:
        return sorted(rows, key=lambda row: (-lengths[row], rollout.response(row)))
    if not rollout.share_prompts:
        return sorted(rows, key=lambda row: -lengths[row])
    prompts = rollout.prompts  # rows of one prompt side by side, so that few micro-batches repeat it
    longest: dict[int, int] = {}
    for row in rows:
        longest[prompts[row]] = max(lengths[row], longest.get(prompts[row], 0))
    return sorted(rows, key=lambda row: (-longest[prompts[row]], prompts[row], -lengths[row]))


def optimizer_batches(rollout: "Rollout", config: PolicySplitConfig, seed: int) -> list[list[int]]:
    """Rows of each optimizer step: all of them in one, or shuffled into several.

    Both rows of a response stay together where the loss compares them. Without rollout sharing only own ones train.
    """
    rows = len(rollout.mode) if config.rollout_sharing else len(rollout.texts)
    if config.gradient_accumulation_steps is None:
        return [list(range(rows))]
    paired = config.regularizer == "loss"
    units = [rollout.pair(response) for response in range(rows // 2)] if paired else [[row] for row in range(rows)]
    shuffled = torch.randperm(len(units), generator=torch.Generator().manual_seed(seed)).tolist()
    size = max(1, config.gradient_accumulation_steps * config.per_device_train_batch_size // len(units[0]))
    starts = range(0, len(units), size)
    return [[row for unit in shuffled[start : start + size] for row in units[unit]] for start in starts]
