"""Evaluations on the way: what a run of a study has measured after each so many steps, and what it had cost by then."""

import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from policy_split.modes import MODE_NAMES, NORMAL
from policy_split.rollouts.rollout import Rollout
from policy_split.storage.whole_folder import replace_text
from policy_split.training.trainer import PolicySplitTrainer

WINDOW = 50  # steps before a milestone over which what training logs is averaged
# of the groups that train: a mode's and the borrowed responses, or all responses of a baseline
DEAD = ("policy_split/bonus_dead_frac", f"{MODE_NAMES[NORMAL]}/frac_reward_zero_std")


class MeasuredTrainer(PolicySplitTrainer):
    """Calls `measure` after every so many steps, the last one apart; what that takes is not in a step's time.

    On one thread of a CPU a step's time is that of the processor: what else the machine does is not in it.
    """

    every: int | None = None
    measure: Callable[[int], None]

    def step(self) -> tuple[dict[str, float], Rollout]:
        started = time.process_time()
        finished = super().step()
        if self.policy.device.type == "cpu" and torch.get_num_threads() == 1:
            finished[0]["step_time"] = time.process_time() - started
        done = self.progress.step
        if self.every and done % self.every == 0 and done < self.max_steps:
            self.measure(done)
        return finished


@dataclass(frozen=True)
class Milestone:
    """A run after some steps."""

    step: int
    tokens: int  # generated so far
    seconds: float  # spent in steps so far, evaluations apart
    evaluation: Mapping[str, Any]
    training: float = math.nan  # accuracy of the normal mode on training questions, lately
    dead: float = math.nan  # share of groups whose rewards are all equal, lately


def save_milestone(folder: Path, step: int, evaluation: Mapping[str, Any]) -> None:
    """The means of an evaluation of the run in that folder; the last step's stands in evaluation.json as a whole."""
    kept = {name: value for name, value in evaluation.items() if name not in ("questions", "per_question")}
    replace_text(folder / f"evaluation-{step}.json", json.dumps(kept) + "\n")


def read_milestones(
    folder: Path, rows: Sequence[Mapping[str, float]], before: Mapping[str, Any], last: Mapping[str, Any]
) -> tuple[Milestone, ...]:
    """From the start, which is common, to the last step; `rows` are those of metrics.jsonl."""
    kept = {int(path.stem.rpartition("-")[2]): path for path in folder.glob("evaluation-*.json")}
    found = {step: json.loads(kept[step].read_text(encoding="utf-8")) for step in sorted(kept) if step < len(rows)}
    found[len(rows)] = last
    return (Milestone(0, 0, 0.0, before), *(_milestone(rows[:step], each) for step, each in found.items()))


def _milestone(rows: Sequence[Mapping[str, float]], evaluation: Mapping[str, Any]) -> Milestone:
    lately = rows[-WINDOW:]
    dead = next((name for name in DEAD if name in lately[-1]), DEAD[-1])
    return Milestone(
        step=len(rows),
        tokens=int(rows[-1]["num_tokens"]),
        seconds=math.fsum(row["step_time"] for row in rows),
        evaluation=evaluation,
        training=statistics.fmean(row[f"{MODE_NAMES[NORMAL]}/reward"] for row in lately),
        dead=statistics.fmean(row.get(dead, math.nan) for row in lately),
    )
