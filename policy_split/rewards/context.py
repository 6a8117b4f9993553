"""What reward functions are given beside the samples, by TRL's names: the run's state, where to write down."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from transformers import TrainerState

COLUMNS = ("step", "mode", "prompt", "completion", "reward")  # of completions.jsonl
NAMES = ("trainer_state", "log_extra", "log_metric")


@dataclass
class RewardContext:
    """For one call of all reward functions: what they read, and what they wrote down.

    trainer_state: as transformers' trainers have it, global_step being the steps that are finished; in an evaluation
    without a trainer a new one.
    """

    trainer_state: TrainerState = field(default_factory=TrainerState)
    columns: dict[str, list[Any]] = field(default_factory=dict)  # of completions.jsonl, a value for each response
    metrics: dict[str, list[float]] = field(default_factory=dict)  # of metrics.jsonl, which has their means

    def arguments(self) -> dict[str, Any]:
        return {"trainer_state": self.trainer_state, "log_extra": self.log_extra, "log_metric": self.log_metric}

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        if column in COLUMNS:
            raise ValueError(
                f"log_extra({column!r}, ...): completions.jsonl has a column of that name; give it another"
            )
        self.columns[column] = [*self.columns.get(column, []), *map(_for_json, values)]

    def log_metric(self, name: str, value: Any) -> None:
        number = value.item() if hasattr(value, "item") else value
        if not isinstance(number, Real) or not math.isfinite(number):
            raise ValueError(f"log_metric({name!r}, {value!r}) needs a finite number")
        self.metrics.setdefault(name, []).append(float(number))


def _for_json(value: Any) -> Any:
    """The value, or its text where JSON has no such thing."""
    plain = value.tolist() if hasattr(value, "tolist") else value
    try:
        json.dumps(plain)
    except (TypeError, ValueError):
        return str(plain)
    return plain
