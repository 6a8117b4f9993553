"""The curves of a study: mean and range over the seeds, at few enough steps for a small file.

Of what training logs running means, and what evaluations on the way have measured.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from policy_split.modes import HIGH_ENTROPY, MODE_NAMES, NORMAL
from policy_split.storage.whole_folder import replace_text

from .results import Results, measure_of
from .variants import Variant

POINTS = 50  # of each curve
EVALUATED = ("accuracy", "distinct_correct_8")  # on the way
DIGITS = 5  # of each number in the file


@dataclass(frozen=True)
class Curve:
    """One variant and mode in a panel of `figures.PANELS`; NaN where a seed has no number."""

    panel: str
    variant: str
    title: str  # of the variant
    mode: str
    steps: list[int]
    mean: list[float]
    low: list[float]  # the least of the seeds
    high: list[float]


def study_curves(results: Results, variants: Sequence[Variant], window: int = 20) -> list[Curve]:
    """Running means over so many steps of every column that some seed has a number of; the evaluations on the way."""
    curves = []
    for variant in variants:
        for panel, mode, column in _columns(variant):
            runs = [results.runs[variant.name][seed].curves[column] for seed in results.seeds]
            if any(math.isfinite(value) for run in runs for value in run):
                curves.append(Curve(panel, variant.name, variant.title, mode, *_thinned(runs, window)))
        curves += _evaluated(results, variant)
    return curves


def _evaluated(results: Results, variant: Variant) -> list[Curve]:
    """Of the milestones that every seed has, where there are others than the first and the last."""
    runs = [results.runs[variant.name][seed].milestones for seed in results.seeds]
    steps = sorted(set.intersection(*({milestone.step for milestone in run} for run in runs)))
    curves: list[Curve] = []
    if len(steps) <= 2:
        return curves
    for panel, mode in ((panel, mode) for panel in EVALUATED for mode in _modes(variant)):
        values = np.array([[measure_of(m.evaluation, panel, mode) for m in run if m.step in steps] for run in runs])
        shown = (values.mean(0).tolist(), values.min(0).tolist(), values.max(0).tolist())
        curves.append(Curve(panel, variant.name, variant.title, mode, steps, *shown))
    return curves


def write_curves(curves: Sequence[Curve], target: Path, about: str) -> None:
    """A JSON file {"about": where the numbers are from, "curves": [...]}, a curve to a line."""
    lines = ",\n".join(json.dumps({**asdict(curve), **_as_json(curve)}, allow_nan=False) for curve in curves)
    target.parent.mkdir(parents=True, exist_ok=True)
    replace_text(target, f'{{"about": {json.dumps(about)}, "curves": [\n{lines}\n]}}\n')


def read_curves(source: Path) -> list[Curve]:
    found = json.loads(source.read_text(encoding="utf-8"))["curves"]
    return [Curve(**{**curve, **{name: _with_gaps(curve[name]) for name in NUMBERS}}) for curve in found]


NUMBERS = ("mean", "low", "high")


def _columns(variant: Variant) -> list[tuple[str, str, str]]:
    """(panel, mode, column of metrics.jsonl)"""
    high = MODE_NAMES[HIGH_ENTROPY]
    columns = [(panel, mode, f"{mode}/{panel}") for panel in ("entropy", "reward") for mode in _modes(variant)]
    return [*columns, ("kl", high, "policy_split/kl_high_normal")] if variant.dual_mode else columns


def _modes(variant: Variant) -> tuple[str, ...]:
    normal, high = MODE_NAMES[NORMAL], MODE_NAMES[HIGH_ENTROPY]
    return (normal, high) if variant.dual_mode else (normal,)


def _thinned(runs: Sequence[Sequence[float]], window: int) -> tuple[list[int], list[float], list[float], list[float]]:
    """Steps, mean, least and greatest; the running mean at a step is over the steps up to it."""
    window = min(window, len(runs[0]))
    smooth = np.array([np.convolve(run, np.ones(window) / window, "valid") for run in runs])
    places = np.unique(np.linspace(0, smooth.shape[1] - 1, POINTS).round().astype(int))
    shown = smooth[:, places]
    return (places + window).tolist(), shown.mean(0).tolist(), shown.min(0).tolist(), shown.max(0).tolist()


def _as_json(curve: Curve) -> dict[str, list[float | None]]:
    return {
        name: [float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None for value in getattr(curve, name)]
        for name in NUMBERS
    }


def _with_gaps(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]
