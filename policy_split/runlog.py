"""What a run writes while it goes, from its first finished step on: metrics, completions and the trackers."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from .checkpoints import COMPLETIONS, METRICS, remove_earlier_run
from .config import PolicySplitConfig
from .launch import start_trackers
from .rollout import Rollout


class RunLog:
    """Writes the steps of a run; the other processes of it write nothing."""

    def __init__(self, accelerator: Accelerator, config: PolicySplitConfig, *, resume: bool):
        self.accelerator, self.config, self.resume = accelerator, config, resume
        folder = Path(config.output_dir)
        self.metrics, self.completions = JsonLines(folder / METRICS), JsonLines(folder / COMPLETIONS)
        self.started = False

    def write(self, metrics: Mapping[str, float], rollout: Rollout, tokenizer: PreTrainedTokenizerBase) -> None:
        if not self.accelerator.is_main_process:
            return
        step = int(metrics["step"])
        if not self.started:
            self._start(step)
        self.metrics.write(metrics)
        if step % self.config.logging_steps:
            return
        self.accelerator.log({name: value for name, value in metrics.items() if name != "step"}, step=step)
        if self.config.log_completions:
            for row in rollout.responses(tokenizer):
                self.completions.write({"step": step, **row})

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.metrics.close()
        self.completions.close()
        for tracker in self.accelerator.trackers if self.started else ():
            tracker.finish()

    def _start(self, step: int) -> None:
        """Clear what an earlier run, or the steps of a resumed one after its checkpoint, have left."""
        self.started = True
        if self.resume:
            self.metrics.keep_before(step)
            self.completions.keep_before(step)
        elif self.config.overwrite_output_dir:
            remove_earlier_run(self.metrics.path.parent)
        start_trackers(self.accelerator, self.config)


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
        self.file.write((json.dumps({key: _finite(value) for key, value in row.items()}) + "\n").encode())

    def keep_before(self, step: int) -> None:
        """Drop the rows of this step and later ones, which are to be written again, and a line that a crash cut off."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True):
            if not line.endswith("\n") or json.loads(line)["step"] >= step:
                break
            kept.append(line)
        rewritten = self.path.with_suffix(".tmp")
        rewritten.write_text("".join(kept), encoding="utf-8")
        os.replace(rewritten, self.path)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
