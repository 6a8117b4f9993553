"""Training curves of a report: both modes of every run over the steps."""

import math
from collections.abc import Sequence

from policy_split.modes import HIGH_ENTROPY, MODE_NAMES, MODES

from .charts import Chart, Series
from .runs import Run, number
from .tables import Entry

# columns of metrics.jsonl behind the mode's name -> (title, unit)
MODE_CURVES = {
    "reward": ("Reward", "mean reward"),
    "entropy": ("Entropy", "nats per token"),
    "clip_ratio": ("Clip fraction", "share of tokens"),
}
# by the mode whose responses the KL is measured on
KL = {"normal": "kl_normal_high", "high_entropy": "kl_high_normal"}
KL_LABELS = {"normal": "KL(normal || high-entropy)", "high_entropy": "KL(high-entropy || normal)"}


def training_charts(runs: Sequence[Run]) -> list[Chart]:
    charts = [
        Chart(f"training-{name}", title, _curves(runs, [f"{mode}/{name}" for mode in MODE_NAMES]), "step", unit)
        for name, (title, unit) in MODE_CURVES.items()
    ]
    note = f"On the normal mode's responses: {KL_LABELS['normal']}; on the others: {KL_LABELS['high_entropy']}."
    for prefix, title in (("", "KL between the modes"), ("exact_", "Exact KL between the modes")):
        curves = _curves(runs, [f"policy_split/{prefix}{KL[mode]}" for mode in MODE_NAMES])
        # the exact one is an option of the trainer: no chart where no run has it
        if not prefix or any(math.isfinite(y) for curve in curves for y in curve.y):
            name = f"training-{prefix.replace('_', '-')}kl"
            charts.append(Chart(name, title, curves, "step", "nats per token", note=note))
    return charts


def _curves(runs: Sequence[Run], columns: Sequence[str]) -> list[Series]:
    """The columns, one for each mode, of every run."""
    curves = []
    for place, run in enumerate(runs):
        steps = [float(row["step"]) for row in run.metrics]
        for mode, column in zip(MODES, columns, strict=True):
            values = [number(row.get(column)) for row in run.metrics]
            gaps = [math.nan if value is None else value for value in values]
            curves.append(Series(run_label(runs, run, mode), steps, gaps, run_color(runs, place, mode), place, mode))
    return curves


def run_color(runs: Sequence[Run], place: int, mode: int) -> int:
    """A color for each run; for each mode where there is but one run."""
    return place if len(runs) > 1 else mode


def run_label(runs: Sequence[Run], run: Run, mode: int) -> str:
    name = MODE_NAMES[mode].replace("_", "-")
    return f"{run.name}, {name}" if len(runs) > 1 else name


def run_legend(runs: Sequence[Run]) -> list[Entry]:
    """Both modes, and every run where there are several."""
    alone = len(runs) == 1
    modes = [
        Entry(f"{MODE_NAMES[mode].replace('_', '-')} mode", mode if alone else None, mode == HIGH_ENTROPY, mode=mode)
        for mode in MODES
    ]
    return modes if alone else [*(Entry(run.name, place, run=place) for place, run in enumerate(runs)), *modes]
