"""Whether a run may go on with what it is given now: every difference that matters is listed, none is passed over."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from policy_split.config import PolicySplitConfig

from .checkpoints import CHECKPOINTS
from .fingerprint import differences, edited_rewards
from .record import Record, read_fingerprint, read_settings

ROWS = "rows of an optimizer step (per_device_train_batch_size * gradient_accumulation_steps)"


def check_resumable(checkpoint: Path, record: Record, *, anyway: bool) -> None:
    """ValueError that lists what differs from the run of a checkpoint, with its value then and now; anyway: a warning.

    Settings that a run may change are not looked at. A run of an earlier version, which has kept no fingerprint, is
    resumed with a warning.
    """
    folder = _folder_of(checkpoint)
    before, kept = read_settings(folder), read_fingerprint(folder)
    found: dict[str, tuple[Any, Any]] = {}
    if before is not None:
        found |= fixed_differences(before, record.settings)
    if kept is not None:
        found |= differences(kept, record.fingerprint)
    else:
        warnings.warn(
            f"{folder} has no fingerprint of its questions, tokenizer and model, so whether they are those of then is "
            f"not checked",
            stacklevel=2,
        )
    if not found:
        return
    listed = "; ".join(f"{name}: {_shown(then)} -> {_shown(now)}" for name, (then, now) in found.items())
    if anyway:
        warnings.warn(f"{folder} goes on with what is not as it was: {listed}", stacklevel=2)
        return
    raise ValueError(
        f"{folder} cannot go on with what is not as it was: {listed}; give what it ran with, start another run, or go "
        f"on regardless with --resume_anyway, train(resume_from_checkpoint=..., resume_anyway=True)"
    )


def noted_changes(checkpoint: Path, record: Record) -> list[str]:
    """What a run may go on with and a person has to know of, a line each."""
    kept = read_fingerprint(_folder_of(checkpoint)) or {}
    return [
        f"{path} is not what it was when the run last started: its steps from now on are graded by what it is now"
        for path in edited_rewards(kept, record.fingerprint)
    ]


def _folder_of(checkpoint: Path) -> Path:
    return checkpoint.parent.parent if checkpoint.parent.name == CHECKPOINTS else checkpoint


def fixed_differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that a resumed run may not change and that differ; what only one of the two knows is left aside."""
    fixed = [name for name, may in PolicySplitConfig.resumption().items() if may == "fixed"]
    found = {
        name: (before[name], after[name])
        for name in fixed
        if name in before and name in after and _plain(before[name]) != _plain(after[name])
    }
    names = (before.get("model"), after.get("model"))
    if None not in names and names[0] != names[1]:
        found = {"model": names} | found
    then, now = _rows_per_step(before), _rows_per_step(after)
    return found if then == now else found | {ROWS: (then, now)}


def _rows_per_step(settings: Mapping[str, Any]) -> int | None:
    """None: all rows of a rollout."""
    rows = 1
    for name, may in PolicySplitConfig.resumption().items():
        if may == "product":
            number = settings.get(name)
            if not isinstance(number, int):
                return None
            rows *= number
    return rows


def _plain(value: Any) -> Any:
    """As YAML gives it back."""
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return {key: _plain(part) for key, part in value.items()} if isinstance(value, Mapping) else value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:60]}...{text[-30:]}"
