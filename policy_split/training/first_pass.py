"""The first update of a rollout scores its own rows: one forward of the model where scoring apart takes two."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from policy_split.config import PolicySplitConfig
from policy_split.models.batches import Batch
from policy_split.rollouts.rollout import Rollout

TABLES = ("logprobs", "entropy", "divergence")


@dataclass
class FirstPass:
    """Micro-batches whose scores come out of the forward that trains them, and what is done with the scores."""

    rollout: Rollout
    batches: list[list[int]]  # of whole questions
    advantages_of: Callable[[Sequence[int]], Tensor] | None  # (rows, T) once the rows are scored; None: known before

    def keep(self, batch: Batch, *values: Tensor) -> None:
        """Log-probs, entropy and, where there is one, divergence of a batch into the rollout's tables."""
        for name, value in zip(TABLES, values, strict=False):
            table = getattr(self.rollout, name)
            table = table.to(value.dtype)  # float64 models keep their precision
            table[batch.index, : batch.length] = batch.scatter(value.detach())
            setattr(self.rollout, name, table)

    def arguments(self, batch: Batch, temperature: float) -> dict[str, Any]:
        """What the scores of a batch depend on: all tokens of the responses have some, trained or not."""
        rollout = self.rollout
        tokens = {"targets": batch.gather(rollout.completion_ids), "mask": batch.gather(rollout.mask)}
        return tokens | {"temperature": temperature}

    def advantages(self, batch: Batch, *values: Tensor) -> Tensor:
        """The batch's advantages, which are a function of its scores."""
        self.keep(batch, *values)
        assert self.advantages_of is not None
        return batch.gather(self.advantages_of(batch.rows))


def scores_with_update(config: PolicySplitConfig, rows_of_question: int) -> bool:
    """Whether the first update of a rollout scores its own rows, see config.score_with_update.

    auto: where a question's rows fit into a micro-batch, or activations are recomputed in backward.
    """
    if config.score_with_update != "auto" or config.scored_apart_because:
        return config.score_with_update == "on"
    fits = rows_of_question <= config.per_device_train_batch_size
    return fits or config.gradient_checkpointing or not config.chosen_algorithm.dual_mode
