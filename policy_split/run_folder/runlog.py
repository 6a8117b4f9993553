"""What a run writes while it goes, from its first finished step on: metrics, completions and the trackers."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from policy_split.config import PolicySplitConfig
from policy_split.rollouts.rollout import Rollout
from policy_split.rollouts.samples import sample_rows
from policy_split.storage.whole_folder import replace_text

from .checkpoints import COMPLETIONS, METRICS, SAMPLES
from .launch import start_trackers
from .output_dir import EVALUATION, remove_earlier_run
from .record import Record

SAMPLES_OF_EACH_MODE = 2


class RunLog:
    """Writes the steps of a run; the other processes of it write nothing."""

    def __init__(self, accelerator: Accelerator, config: PolicySplitConfig, record: Record, *, resume: bool):
        self.accelerator, self.config, self.record, self.resume = accelerator, config, record, resume
        folder = Path(config.output_dir)
        self.files = [JsonLines(folder / name) for name in (METRICS, COMPLETIONS, SAMPLES)]
        self.metrics, self.completions, self.samples = self.files
        self.started = False

    def write(self, metrics: Mapping[str, float], rollout: Rollout, tokenizer: PreTrainedTokenizerBase) -> None:
        if not self.accelerator.is_main_process:
            return
        step = int(metrics["step"])
        if not self.started:
            self._start(step)
        self.metrics.write(metrics)
        if shows_samples(self.config, step):
            for row in sample_rows(rollout, tokenizer, step, SAMPLES_OF_EACH_MODE):
                self.samples.write(row)
        if step % self.config.logging_steps:
            return
        self.accelerator.log({name: value for name, value in metrics.items() if name != "step"}, step=step)
        if self.config.log_completions:
            for row in rollout.responses(tokenizer):
                self.completions.write({"step": step, **row})

    def sync(self) -> None:
        """Force the rows to disk: before a checkpoint of their step, which must not outlive them."""
        for file in self.files:
            file.sync()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.files:
            file.close()
        for tracker in self.accelerator.trackers if self.started else ():
            tracker.finish()

    def _start(self, step: int) -> None:
        """Clear what an earlier run, or the steps of a resumed one after its checkpoint, have left."""
        self.started = True
        if self.resume:
            for file in self.files:
                file.keep_before(step)
            (self.metrics.path.parent / EVALUATION).unlink(missing_ok=True)  # of a model that is trained on
        elif self.config.overwrite_output_dir:
            remove_earlier_run(self.metrics.path.parent)
        self.record.write(self.metrics.path.parent, step)
        start_trackers(self.accelerator, self.config, step, resume=self.resume)


def shows_samples(config: PolicySplitConfig, step: int) -> bool:
    """Whether the responses to the step's first question are written with the entropy of each token."""
    every = config.sample_steps
    return bool(every) and (step == 1 or step % every == 0)


class JsonLines:
    """A file of one JSON object per line, opened at the first line; a line is on disk as a whole or not at all."""

    def __init__(self, path: Path):
        self.path = path
        self.file: Any = None

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row; NaN and infinities become null, which JSON has no word for."""
        if self.file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(self.path, "ab", buffering=0)  # noqa: SIM115  (held open for the run, closed by `close`)
        line = (json.dumps({key: _finite(value) for key, value in row.items()}) + "\n").encode()
        while line:  # a disk that becomes full takes a part, and raises at the next
            line = line[self.file.write(line) :]

    def keep_before(self, step: int) -> None:
        """Drop the rows of this step and later ones, which are to be written again, and a line that a crash cut off."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
            if not line.endswith("\n") or _step(line) >= step:
                break
            kept.append(line)
        replace_text(self.path, "".join(kept))

    def sync(self) -> None:
        if self.file is not None:
            os.fsync(self.file.fileno())

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None


def _step(line: str) -> float:
    """The step of a row; infinite for what a machine that went down has left in the file."""
    try:
        step: float = json.loads(line)["step"]
        return step
    except (ValueError, LookupError, TypeError):
        return math.inf


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
