"""What the finished runs of a study have measured: one number per seed, variant, mode and measure."""

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policy_split.modes import HIGH_ENTROPY, MODE_NAMES
from policy_split.run_folder.checkpoints import METRICS
from policy_split.run_folder.output_dir import ENVIRONMENT

from .milestones import Milestone, read_milestones
from .place import EVALUATION, WARM_START
from .plan import Plan
from .runner import finished

# columns of metrics.jsonl
CURVES = (
    "normal/entropy",
    "high_entropy/entropy",
    "normal/reward",
    "high_entropy/reward",
    "policy_split/kl_high_normal",
    "policy_split/eta",
)


@dataclass(frozen=True)
class Result:
    """One run: its evaluation, the curves of its training and what a step took."""

    evaluation: Mapping[str, Any]
    curves: Mapping[str, list[float]]
    tokens: int  # generated in training
    step_time: float  # seconds, median
    milestones: tuple[Milestone, ...] = ()  # from the common start on


@dataclass(frozen=True)
class Results:
    """Runs by variant and seed; `seeds` are those of which every variant has a run."""

    runs: Mapping[str, Mapping[int, Result]]
    seeds: tuple[int, ...]
    before: Mapping[str, Any]  # the evaluation of the warm start
    environment: Mapping[str, Any]

    def values(self, variant: str, name: str, mode: str) -> list[float]:
        """The measure of each seed, in the order of `seeds`."""
        return [measure_of(self.runs[variant][seed].evaluation, name, mode) for seed in self.seeds]


def measure_of(evaluation: Mapping[str, Any], name: str, mode: str) -> float:
    """The mean of "accuracy", "pass@8" and so on of a mode, or of the exact "kl" from it to the other."""
    measures, found = evaluation["modes"][mode], name
    if name == "kl":
        measures, found = evaluation, "kl_high_normal" if mode == MODE_NAMES[HIGH_ENTROPY] else "kl_normal_high"
    elif name.startswith("pass@"):
        measures, found = measures["pass_at_k"], name.removeprefix("pass@")
    return float(measures[found]["mean"])


def read_results(plan: Plan, folder: Path) -> Results:
    """Every finished run of the plan; ValueError if no seed is finished for every variant."""
    runs: dict[str, dict[int, Result]] = {variant.name: {} for variant in plan.variants}
    before = None
    for variant, seed in plan.runs:
        place = folder / f"{variant.name}-{seed}"
        if finished(place):
            before = before or json.loads((folder / WARM_START / EVALUATION).read_text(encoding="utf-8"))
            runs[variant.name][seed] = _read(place, before)
    seeds = tuple(seed for seed in plan.seeds if all(seed in by_seed for by_seed in runs.values()))
    if not seeds or before is None:
        raise ValueError(f"{folder}: no seed is finished for all of {', '.join(runs)}")
    first = folder / f"{plan.variants[0].name}-{seeds[0]}" / ENVIRONMENT
    return Results(runs, seeds, before, json.loads(first.read_text(encoding="utf-8")))


def _read(folder: Path, before: Mapping[str, Any]) -> Result:
    lines = (folder / METRICS).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    curves = {name: [row.get(name, math.nan) for row in rows] for name in CURVES}
    evaluation = json.loads((folder / EVALUATION).read_text(encoding="utf-8"))
    step_time = statistics.median(row["step_time"] for row in rows)
    milestones = read_milestones(folder, rows, before, evaluation)
    return Result(evaluation, curves, rows[-1]["num_tokens"], step_time, milestones)
