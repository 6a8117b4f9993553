"""`HeldKL` of a verl configuration, kept in a file of each checkpoint's folder; no verl in here."""

import inspect
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from policy_split.algorithms.advantages import dual_mode_advantages
from policy_split.algorithms.kl_target import HeldEta
from policy_split.integrations.held_kl import HeldKL
from policy_split.storage.whole_folder import replace_text

FILE = "policy_split_eta.json"
TARGET = "target_kl"


class HeldKLFile(HeldKL):
    def save(self, folder: Path | str) -> None:
        """Nothing where there is no target."""
        if self.target is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)
            replace_text(Path(folder) / FILE, json.dumps(self.held._asdict()))

    def load(self, folder: Path | str) -> None:
        """Of a checkpoint without the file, of a run that had no target, the eta of the first step stays."""
        path = Path(folder) / FILE
        if self.target is not None and path.exists():
            self.held = HeldEta(**json.loads(path.read_text()))


def held_kl(given: Mapping[str, Any]) -> HeldKLFile:
    """By algorithm.policy_split; ValueError for a target that the KL cannot be held at."""
    target, eta = given.get(TARGET), given.get("eta", inspect.signature(dual_mode_advantages).parameters["eta"].default)
    where = f"algorithm.policy_split.{TARGET}={target!r}"
    if target is not None and (isinstance(target, bool | str) or not 0 < target < math.inf):
        raise ValueError(f"{where} must be a finite number above 0, or null")
    if target is not None and not eta:
        raise ValueError(f"{where} multiplies eta, and nothing comes of eta={eta}: give its start")
    return HeldKLFile(eta, target)
