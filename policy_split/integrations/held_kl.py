"""eta under target_kl in another library's trainer: moved once for each rollout by the KL that was measured on it."""

import math
from collections.abc import Mapping

from policy_split.algorithms.kl_target import HeldEta

KL = "policy_split/kl_high_normal"


class HeldKL:
    """The eta that holds the KL between the modes at a target (`kl_target`), or without one the eta that stays."""

    def __init__(self, start: float, target: float | None):
        self.start, self.target = start, target
        self.held = HeldEta(start)

    def applied(self) -> float:
        """The eta with which the next rows train."""
        return self.held.eta if self.target is None else self.held.applied(self.target)

    def finished(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """After rows of those metrics over all processes: eta moves; returns the eta that was used, for the log."""
        if self.target is None:
            return {}
        used = self.applied()
        self.held = self.held.after(metrics.get(KL, math.nan), self.target, self.start)
        return {"policy_split/eta": used}
