"""eta under target_kl in TRL's trainer: moved once for each generation, kept in a checkpoint's trainer_state.json."""

import math
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from policy_split.algorithms.kl_target import HeldEta

KL = "policy_split/kl_high_normal"


class HeldKL(TrainerCallback, ExportableState):
    """The eta that holds the KL between the modes at a target (`kl_target`), or without one the eta that stays."""

    def __init__(self, start: float, target: float | None):
        self.start, self.target = start, target
        self.eta, self.kl, self.mean = HeldEta(start)

    def applied(self) -> float:
        """The eta with which the next rows train."""
        return self.eta if self.target is None else self._held().applied(self.target)

    def finished(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """After rows of those metrics over all processes: eta moves; returns the eta that was used, for the log."""
        if self.target is None:
            return {}
        used = self.applied()
        self.eta, self.kl, self.mean = self._held().after(metrics.get(KL, math.nan), self.target, self.start)
        return {"policy_split/eta": used}

    def _held(self) -> HeldEta:
        return HeldEta(self.eta, self.kl, self.mean)

    def state(self) -> dict[str, Any]:
        return {"args": {"start": self.start, "target": self.target}, "attributes": self._held()._asdict()}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After a resume what the checkpoint has; transformers itself gives it back only where a setting says so."""
        saved = state.stateful_callbacks.get(type(self).__name__)
        if state.global_step and saved and self.target is not None:
            vars(self).update(saved["attributes"])
