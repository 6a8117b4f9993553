"""eta under target_kl in TRL's trainer: moved once for each generation, kept in a checkpoint's trainer_state.json."""

import math
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from policy_split.algorithms.kl_target import applied_eta, next_eta, next_mean

KL = "policy_split/kl_high_normal"


class HeldKL(TrainerCallback, ExportableState):
    """The eta that holds the KL between the modes at a target (`next_eta`), or without one the eta that stays."""

    def __init__(self, start: float, target: float | None):
        self.start, self.target = start, target
        self.eta, self.kl, self.mean = start, 0.0, 0.0

    def applied(self) -> float:
        """The eta with which the next rows train."""
        return self.eta if self.target is None else applied_eta(self.eta, self.kl, self.mean, self.target)

    def finished(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """After rows of those metrics over all processes: eta moves; returns the eta that was used, for the log."""
        if self.target is None:
            return {}
        used, kl = self.applied(), metrics.get(KL, math.nan)
        self.eta = next_eta(self.eta, kl, self.target, self.start)
        self.kl = self.kl if math.isnan(kl) else kl
        self.mean = next_mean(self.mean, kl, self.target)
        return {"policy_split/eta": used}

    def state(self) -> dict[str, Any]:
        moved = {"eta": self.eta, "kl": self.kl, "mean": self.mean}
        return {"args": {"start": self.start, "target": self.target}, "attributes": moved}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After a resume what the checkpoint has; transformers itself gives it back only where a setting says so."""
        saved = state.stateful_callbacks.get(type(self).__name__)
        if state.global_step and saved and self.target is not None:
            vars(self).update(saved["attributes"])
