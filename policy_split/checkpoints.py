"""The run's folder: no mixing with an earlier run, and checkpoints that are there as a whole or not at all."""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers.utils import logging

METRICS, COMPLETIONS = "metrics.jsonl", "completions.jsonl"


@dataclass
class Progress:
    """What a resumed run needs besides weights, optimizer and schedule: the rest follows from (seed, step)."""

    step: int = 0  # steps that are done
    num_tokens: int = 0  # generated so far, over all processes
    skipped: int = 0  # optimizer steps skipped in a row

    def state_dict(self) -> dict[str, int]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, int]) -> None:
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
    files = [folder / name for name in (METRICS, COMPLETIONS) if (folder / name).exists()]
    return [*files, *checkpoints(folder)]


def remove_earlier_run(folder: Path) -> None:
    for path in earlier_run(folder):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def checkpoints(folder: Path) -> list[Path]:
    """The folder's checkpoints, the oldest first."""
    found = [
        path for path in folder.glob("checkpoint-*") if path.is_dir() and re.fullmatch(r"checkpoint-\d+", path.name)
    ]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def find_checkpoint(folder: Path, resume: str | Path | bool) -> Path:
    """The checkpoint of that path, or the folder's newest for True; FileNotFoundError if there is none."""
    if resume is True:
        found = checkpoints(folder)
        if not found:
            raise FileNotFoundError(f"resume_from_checkpoint=True: there is no checkpoint in {folder}")
        return found[-1]
    if not Path(resume).is_dir():
        raise FileNotFoundError(f"resume_from_checkpoint={str(resume)!r}: there is no such folder")
    return Path(resume)


def save_checkpoint(accelerator: Accelerator, folder: Path, step: int, limit: int | None) -> Path:
    """Save accelerate's whole state as checkpoint-<step>, then remove the oldest checkpoints beyond the limit."""
    target = folder / f"checkpoint-{step}"
    unfinished = folder / f"unfinished-{step}"
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(unfinished))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(target, ignore_errors=True)
        os.replace(unfinished, target)
        for path in checkpoints(folder)[: -limit if limit else None]:
            if limit:
                shutil.rmtree(path)
    accelerator.wait_for_everyone()
    return target


def save_pretrained(accelerator: Accelerator, model: Any, tokenizer: Any, folder: Path) -> None:
    """Model and tokenizer in Hugging Face's format, for `from_pretrained`."""
    state = accelerator.get_state_dict(model)
    bare = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    if accelerator.is_main_process:
        with _progress_bars(sys.stderr.isatty()):
            bare.save_pretrained(folder, state_dict=state)
        tokenizer.save_pretrained(folder)
    accelerator.wait_for_everyone()


@contextmanager
def _progress_bars(shown: bool) -> Iterator[None]:
    """transformers draws a bar for every file it saves, into log files too."""
    before = logging.is_progress_bar_enabled()
    if not shown:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            logging.enable_progress_bar()
