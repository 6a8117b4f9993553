"""A study that is given more steps: its runs go on where they ended, and what they measured there is a milestone."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from policy_split.config import PolicySplitConfig

from .milestones import save_milestone
from .place import EVALUATION, TRAINED

CONSTANT = ("constant", "constant_with_warmup")


def is_longer(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a spec is another with more steps, at a learning rate that does not depend on how many there are."""
    if "settings" not in there or "settings" not in wanted:
        return False
    before, after = there["settings"], wanted["settings"]
    if {**there, "settings": {**before, "max_steps": None}} != {**wanted, "settings": {**after, "max_steps": None}}:
        return False  # nor may its settings be those of this version
    given, asked = PolicySplitConfig(**before), PolicySplitConfig(**after)
    return asked.lr_scheduler_type in CONSTANT and 0 < given.max_steps < asked.max_steps


def lengthen(folder: Path, there: Mapping[str, Any]) -> None:
    """Make a finished run one that was cut after its last step; killed on the way, it is either."""
    evaluation = folder / EVALUATION
    if evaluation.is_file():
        save_milestone(folder, there["settings"]["max_steps"], json.loads(evaluation.read_text(encoding="utf-8")))
        evaluation.unlink()
    (folder / TRAINED).unlink(missing_ok=True)
