"""The run's folder: no mixing with an earlier run, and checkpoints that are there as a whole or not at all."""

import os
import re
import shutil
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from policy_split.progress import progress_bars
from policy_split.storage.state_files import write_state
from policy_split.storage.whole_folder import ASIDE, damage, publish, remove, seal, sweep, sync

METRICS, COMPLETIONS, SAMPLES, CHECKPOINTS = "metrics.jsonl", "completions.jsonl", "samples.jsonl", "checkpoints"


@dataclass
class Progress:
    """What a resumed run needs besides weights, optimizer and schedule: the rest follows from (seed, step)."""

    step: int = 0  # steps that are done
    num_tokens: int = 0  # generated so far, over all processes
    skipped: int = 0  # optimizer steps skipped in a row
    entropy_coef: float = 0.0  # where the algorithm adapts it

    def state_dict(self) -> dict[str, float]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, float]) -> None:
        vars(self).update(state)


def check_output_dir(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Raises FileExistsError if the folder is a file, or holds a run that is neither resumed nor to be overwritten."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"output_dir={str(folder)!r} is a file; expected a folder")
    if not resume and not overwrite and earlier_run(folder):
        names = ", ".join(path.name for path in earlier_run(folder)[:3])
        raise FileExistsError(
            f"output_dir={str(folder)!r} already holds a run ({names}); "
            f"choose another, resume with train(resume_from_checkpoint=True), or set overwrite_output_dir=True"
        )


def earlier_run(folder: Path) -> list[Path]:
    files = [folder / name for name in (METRICS, COMPLETIONS, SAMPLES) if (folder / name).exists()]
    return [*files, *checkpoints(folder)]


def remove_earlier_run(folder: Path) -> None:
    for path in earlier_run(folder):
        if path.is_dir():
            remove(path)
        else:
            path.unlink()


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
    return not checkpoints(folder) and not (folder / "config.json").exists()


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
    limit: int | None,
) -> Path:
    """Save checkpoint-<step> as a whole or not at all, then remove the oldest checkpoints beyond the limit.

    parts: name -> state of what is the same in every process, written by the main one; own: what each process has for
    itself, written as <name>-<process>. The states are those that `write_state` takes. The checkpoint just written is
    never removed, nor are those of later steps, which a resumed run passed over and will replace. OSError: the disk is
    full or fails; what was half written is removed, and every older checkpoint is as it was.
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


def save_pretrained(accelerator: Accelerator, model: Any, tokenizer: Any, folder: Path) -> None:
    """Model and tokenizer in Hugging Face's format, for `from_pretrained`; each file is replaced as a whole."""
    state = accelerator.get_state_dict(model)
    bare = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    if accelerator.is_main_process:
        unfinished = folder / f"{ASIDE}model"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        try:
            with progress_bars(sys.stderr.isatty()):
                bare.save_pretrained(unfinished, state_dict=state)
            tokenizer.save_pretrained(unfinished)
            for path in unfinished.iterdir():
                sync(path)
                os.replace(path, folder / path.name)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        sync(folder)
    accelerator.wait_for_everyone()
