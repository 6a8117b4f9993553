"""The run's folder before a run: what an earlier one has left in it, and whether it can be written."""

import contextlib
import os
import stat
import tempfile
from pathlib import Path

from policy_split.storage.whole_folder import remove, sweep

from .checkpoints import CHECKPOINTS, COMPLETIONS, METRICS, SAMPLES, checkpoints
from .model_folder import holds_model, model_files

CONFIG, ENVIRONMENT, EVALUATION, FINGERPRINT = "config.yaml", "environment.json", "evaluation.json", "fingerprint.json"
TRACKER = "policy-split"  # tensorboard's folder
ROWS = (METRICS, COMPLETIONS, SAMPLES)
# what else a run or a command writes there; CURVES is plot's, TASK_FILES are those of the built-in task
CURVES = "curves.png"
TASK_FILES = ("before.json", "countdown.json", "results.json", "table.md")
TRIES = 100  # of processes that check the same folder at once
FILES = (CONFIG, "config-*.yaml", ENVIRONMENT, EVALUATION, FINGERPRINT, CURVES, *TASK_FILES)


def check_output_dir(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Raises FileExistsError if the folder is a file, or holds a run or a model that is neither resumed nor to be
    overwritten, and another OSError if it cannot be written."""
    if _is_no_folder(folder):
        raise FileExistsError(f"output_dir={str(folder)!r} is a file; expected a folder")
    if not resume and not overwrite:
        run, model = earlier_run(folder), model_files(folder) if holds_model(folder) else []
        if run or model:
            what, resumed = ("run", ", resume with train(resume_from_checkpoint=True)") if run else ("model", "")
            names = ", ".join(path.name for path in (run or model)[:3])
            raise FileExistsError(
                f"output_dir={str(folder)!r} already holds a {what} ({names}); "
                f"choose another{resumed}, or set overwrite_output_dir=True"
            )
    check_writable(folder)


def check_writable(folder: Path) -> None:
    """OSError that says where nothing can be written; a folder that had to be made for that is removed again."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        for left in reversed(range(TRIES)):
            try:
                return _write_in(folder)
            except (FileNotFoundError, FileExistsError):  # another process of the run may have just removed it
                if not left:
                    raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(
            error.errno, f"output_dir={str(folder)!r} cannot be written ({reason}); choose another"
        ) from error
    finally:
        for path in missing:
            with contextlib.suppress(OSError):  # not there, or another process is writing in it
                path.rmdir()


def _is_no_folder(path: Path) -> bool:
    """Something else stands there; looked at once, as it may come and go meanwhile."""
    try:
        return not stat.S_ISDIR(path.stat().st_mode)
    except OSError:  # nothing, or nothing that can be looked at
        return False


def _write_in(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for each in (folder, folder / CHECKPOINTS):
        if each.is_dir():
            with tempfile.NamedTemporaryFile(dir=each, prefix="unfinished-") as file:
                file.write(b"\n")
                file.flush()
    for name in ROWS:
        if (folder / name).exists():
            open(folder / name, "ab").close()


def earlier_run(folder: Path) -> list[Path]:
    """The rows and checkpoints that those of a run would be mixed with."""
    return [*(folder / name for name in ROWS if (folder / name).exists()), *checkpoints(folder)]


def remove_earlier_run(folder: Path) -> None:
    """Remove all that a run has written, and nothing else."""
    events = [path for name in ("events.out.tfevents.*", "hparams.yml") for path in (folder / TRACKER).rglob(name)]
    others = [path for name in FILES for path in folder.glob(name)]
    for path in [*earlier_run(folder), *model_files(folder), *others, *events]:
        if path.is_dir():
            remove(path)
        else:
            path.unlink(missing_ok=True)
    sweep(folder / CHECKPOINTS)
    emptied = [path for path in (folder / TRACKER).rglob("*") if path.is_dir()]
    for path in [*sorted(emptied, reverse=True), folder / TRACKER, folder / CHECKPOINTS]:
        if path.is_dir() and not os.listdir(path):
            path.rmdir()
