"""Runs the pieces of a study in processes, some at a time; what is finished is not repeated, what was cut goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from policy_split.config import PolicySplitConfig
from policy_split.isolation.handlers import Handlers
from policy_split.storage.whole_folder import replace_text

from .longer import is_longer, lengthen
from .place import EVALUATION, SPEC, WARM_START
from .plan import Plan

LOG, ENDED_BY_REQUEST = "output.log", 130
POLL_SECONDS, PATIENCE_SECONDS = 0.2, 60.0


class OutOfTime(Exception):
    """The time limit came before the last run: what is there is saved, and the same command goes on."""


def run_study(plan: Plan, folder: Path, *, seconds: float | None = None) -> None:
    """Every run of the plan, in folder/VARIANT-SEED: spec.json, the files of a run, evaluation.json and output.log.

    seconds: stop after so many, with everything saved. Raises OutOfTime then; ValueError if a folder holds a piece of
    another plan or a setting is wrong; ChildProcessError, with the last line that it wrote, if a piece fails.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    for variant, seed in plan.runs:
        PolicySplitConfig(**plan.run_spec(variant, seed)["settings"])
    prepare(folder / WARM_START, plan.warm_start_spec())
    folders = [folder / f"{variant.name}-{seed}" for variant, seed in plan.runs]
    for place, (variant, seed) in zip(folders, plan.runs, strict=True):
        prepare(place, plan.run_spec(variant, seed))
    _run_all([folder / WARM_START], 1, plan.threads, deadline)
    _run_all(folders, plan.jobs, plan.threads, deadline)


def prepare(folder: Path, spec: Mapping[str, Any]) -> None:
    """Make the folder of a piece, or ask the one that is there for more steps; ValueError if it is that of another."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SPEC
    wanted = json.loads(json.dumps(spec))
    there = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    if there == wanted:
        return
    if there is not None and not is_longer(there, wanted):
        names = sorted(name for name in {**there, **wanted} if there.get(name) != wanted.get(name))
        raise ValueError(f"{folder} holds a run with other {', '.join(names)}; choose another --output or remove it")
    if there is not None:
        lengthen(folder, there)
    replace_text(path, json.dumps(wanted, indent=1) + "\n")


def finished(folder: Path) -> bool:
    return (folder / EVALUATION).is_file()


def _run_all(folders: Sequence[Path], jobs: int, threads: int, deadline: float | None) -> None:
    waiting = [folder for folder in folders if not finished(folder)]
    total, done = len(waiting), 0
    running: dict[Path, subprocess.Popen[bytes]] = {}
    started = time.monotonic()
    with Handlers({signal.SIGTERM: _stopped}), _ended(running):
        while waiting or running:
            if deadline is not None and time.monotonic() > deadline:
                raise OutOfTime(f"{total - done} of {total} runs are not finished; the same command goes on")
            while waiting and len(running) < jobs:
                folder = waiting.pop(0)
                running[folder] = _start(folder, threads)
            time.sleep(POLL_SECONDS)
            for folder, process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[folder]
                if process.returncode or not finished(folder):
                    said = _last_line(folder / LOG)
                    raise ChildProcessError(f"{folder.name} ended with {process.returncode}: {said}")
                done += 1
                print(f"{folder.name}: {done} of {total}, {time.monotonic() - started:.0f} s", file=sys.stderr)


def _start(folder: Path, threads: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": "2000"}
    environment["TOKENIZERS_PARALLELISM"] = "false"
    command = [sys.executable, "-m", "policy_split.study.work", str(folder)]
    with open(folder / LOG, "ab") as log:
        # a session of its own: Ctrl-C reaches this process, which tells the others
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )


def _stopped(number: int, frame: FrameType | None) -> None:
    """SIGTERM as Ctrl-C: or the runs would go on without this process, beside those of the same command's next call."""
    raise KeyboardInterrupt("stopped by SIGTERM; the same command goes on")


@contextmanager
def _ended(running: dict[Path, subprocess.Popen[bytes]]) -> Iterator[None]:
    """Whatever happens, no process is left: each is asked to save and end, and killed if it does not."""
    try:
        yield
    finally:
        for process in running.values():
            process.send_signal(signal.SIGTERM)
        limit = time.monotonic() + PATIENCE_SECONDS
        for process in running.values():
            try:
                process.wait(max(0.0, limit - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "it wrote nothing")
