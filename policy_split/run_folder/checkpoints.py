"""Checkpoints that are there as a whole or not at all."""

import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from policy_split.storage.state_files import write_state
from policy_split.storage.whole_folder import ASIDE, damage, publish, remove, seal, sweep

from .model_folder import holds_model

METRICS, COMPLETIONS, SAMPLES, CHECKPOINTS = "metrics.jsonl", "completions.jsonl", "samples.jsonl", "checkpoints"


@dataclass
class Progress:
    """What a resumed run needs besides weights, optimizer and schedule: the rest follows from (seed, step)."""

    step: int = 0  # steps that are done
    num_tokens: int = 0  # generated so far, over all processes
    skipped: int = 0  # optimizer steps skipped in a row
    entropy_coef: float = 0.0  # where the algorithm adapts it
    eta: float = 0.0  # of the next step where target_kl moves it; 0: before the first
    kl: float = 0.0  # of the last step, there
    kl_mean: float = 0.0  # its running mean
    kl_slow_mean: float = 0.0  # the slower one

    def state_dict(self) -> dict[str, float]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, float]) -> None:
        vars(self).update(state)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run's folder, the oldest first; whether they are whole is not looked at."""
    found = [
        path
        for path in (folder / CHECKPOINTS).glob("checkpoint-*")
        if path.is_dir() and re.fullmatch(r"checkpoint-\d+", path.name)
    ]
    return sorted(found, key=step_of)


def stopped_before_first(folder: Path) -> bool:
    """Whether a run has left no checkpoint and no final model: it can only start over, and loses nothing by it."""
    return not checkpoints(folder) and not holds_model(folder)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def find_checkpoint(folder: Path, resume: str | Path | bool) -> Path:
    """The checkpoint of that path, or for True the newest of the run's folder that is whole.

    A damaged one is passed over with a warning that names the file. FileNotFoundError: there is none. ValueError: none
    is whole, or the one that was asked for is not.
    """
    if not isinstance(resume, bool):
        path = Path(resume)
        if not path.is_dir():
            raise FileNotFoundError(f"resume_from_checkpoint={str(resume)!r}: there is no such folder")
        wrong = damage(path)
        if wrong:
            raise ValueError(f"resume_from_checkpoint={str(resume)!r} is not a whole checkpoint: {wrong}")
        return path
    found = checkpoints(folder)
    if not found:
        raise FileNotFoundError(f"resume_from_checkpoint=True: there is no checkpoint in {folder / CHECKPOINTS}")
    passed_over: list[str] = []
    for path in reversed(found):
        wrong = damage(path)
        if wrong is None:
            if passed_over:
                warnings.warn(f"{'; '.join(passed_over)}: going on from {path.name} instead", stacklevel=2)
            return path
        passed_over.append(wrong)
    raise ValueError(
        f"resume_from_checkpoint=True: none of the {len(found)} checkpoints in {folder / CHECKPOINTS} is whole: "
        f"{'; '.join(passed_over)}"
    )


def save_checkpoint(
    accelerator: Accelerator,
    folder: Path,
    step: int,
    parts: Mapping[str, Any],
    own: Mapping[str, Any],
    describe: Callable[[Path], None],
    limit: int | None,
) -> Path:
    """Save checkpoint-<step> as a whole or not at all, then remove the oldest checkpoints beyond the limit.

    parts: name -> state of what is the same in every process, written by the main one; own: what each process has for
    itself, written as <name>-<process>. The states are those that `write_state` takes. describe: writes what makes of
    it a model's folder. The checkpoint just written is never removed, nor are those of later steps, which a resumed run
    passed over and will replace. OSError: the disk is full or fails; what was half written is removed, and every older
    checkpoint is as it was.
    """
    parent = folder / CHECKPOINTS
    target, unfinished = parent / f"checkpoint-{step}", parent / f"{ASIDE}{step}"
    try:
        if accelerator.is_main_process:
            sweep(parent)
            unfinished.mkdir(parents=True)
        accelerator.wait_for_everyone()
        for name, state in own.items():
            write_state(unfinished, f"{name}-{accelerator.process_index}", state)
        if accelerator.is_main_process:
            for name, state in parts.items():
                write_state(unfinished, name, state)
            describe(unfinished)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            seal(unfinished)
            publish(unfinished, target)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"{target} could not be saved ({reason}); {usable(folder)}") from error
    if accelerator.is_main_process and limit:
        older = [path for path in checkpoints(folder) if step_of(path) <= step]
        for path in older[:-limit]:
            remove(path)
    accelerator.wait_for_everyone()
    return target


def usable(folder: Path) -> str:
    """What there is to go on from, for a message."""
    whole = next((path for path in reversed(checkpoints(folder)) if damage(path) is None), None)
    return f"the newest usable checkpoint is {whole}" if whole else "there is no checkpoint to go on from"
