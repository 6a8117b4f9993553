"""Evaluations of a report: pass@k, every measure of both modes, the KL between them, and runs compared in pairs."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from policy_split.evaluation.comparison import compare
from policy_split.modes import MODE_NAMES, MODES

from .charts import Chart, Series
from .runs import Run, interval, number, section
from .tables import Table, measure_cell
from .training import KL, KL_LABELS, run_color, run_label

MEASURES = {
    "accuracy": "accuracy",
    "best_of_n": "best of n",
    "distinct_correct": "different correct answers",
    "distinct_correct_8": "different correct answers of 8",
    "entropy": "entropy (nats/token)",
    "mean_length": "length (tokens)",
}


@dataclass
class Against:
    """The other run minus the first, paired by question; `refused` says why it is not."""

    first: str
    other: str
    table: Table | None = None
    refused: str = ""


@dataclass
class Evaluations:
    """What the section shows; None for what no run has."""

    missing: list[str]  # runs that were not evaluated
    chart: Chart | None
    measures: Table | None
    divergences: Table | None
    against: list[Against]


def read_evaluations(runs: Sequence[Run]) -> Evaluations:
    evaluated = [run for run in runs if run.evaluation]
    missing = [run.name for run in runs if not run.evaluation]
    if not evaluated:
        return Evaluations(missing, None, None, None, [])
    chart = Chart("pass-at-k", "pass@k", _pass_curves(runs), "k", "share of questions", powers=True)
    against = [_against(evaluated[0], other) for other in evaluated[1:]]
    return Evaluations(missing, chart, _measures(evaluated), _divergences(evaluated), against)


def _pass_curves(runs: Sequence[Run]) -> list[Series]:
    curves = []
    for place, run in enumerate(runs):
        for mode in MODES:
            found = section(section(section(run.evaluation, "modes"), MODE_NAMES[mode]), "pass_at_k")
            known = {int(k): interval(value) for k, value in found.items() if re.fullmatch("[1-9][0-9]{0,8}", str(k))}
            points = [(float(k), value) for k, value in sorted(known.items()) if value is not None]
            x, y = [k for k, _ in points], [mean for _, (mean, _, _) in points]
            # where a point has no interval, its band has no width there
            low = [mean if end is None else end for _, (mean, end, _) in points]
            high = [mean if end is None else end for _, (mean, _, end) in points]
            color = run_color(runs, place, mode)
            curves.append(Series(run_label(runs, run, mode), x, y, color, place, mode, low, high))
    return curves


def _measures(runs: Sequence[Run]) -> Table | None:
    """Every number that some mode of some run has, a row for each run and mode."""
    modes = [(run, mode, section(section(run.evaluation, "modes"), mode)) for run in runs for mode in MODE_NAMES]
    measured = dict.fromkeys(
        name for _, _, mode in modes for name, value in mode.items() if name != "pass_at_k" and interval(value)
    )
    names = [*(name for name in MEASURES if name in measured), *(name for name in measured if name not in MEASURES)]
    if not names:
        return None
    rows = []
    for run, mode, values in modes:
        samples = [number(run.evaluation.get(name)) for name in ("num_questions", "num_samples")]
        counts = [f"{count:.0f}" if count is not None else "–" for count in samples]
        cells = [measure_cell(values.get(name)) for name in names]
        rows.append([f"{run.name}, {mode.replace('_', '-')}", *cells, *counts])
    titles = [MEASURES.get(name, str(name).replace("_", " ")) for name in names]
    return Table(["run and mode", *titles, "questions", "samples"], rows)


def _against(first: Run, other: Run) -> Against:
    try:
        compared = compare(other.evaluation, first.evaluation)
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        return Against(first.name, other.name, refused=str(error))  # files of other tools have what they like
    rows = []
    for mode in MODE_NAMES:
        values = section(section(compared, "modes"), mode)
        passes = {f"pass@{k}": value for k, value in section(values, "pass_at_k").items()}
        values = {name: value for name, value in values.items() if name != "pass_at_k"} | passes
        for name, value in values.items():
            if interval(value.get("difference")):
                label = f"{mode.replace('_', '-')}: {MEASURES.get(name, name.replace('_', ' '))}"
                difference = measure_cell({**value, "mean": value["difference"]})
                rows.append([label, difference, f"{value['p_value']:.3g}"])
    return Against(first.name, other.name, Table(["mode: measure", "difference", "p"], rows))


def _divergences(runs: Sequence[Run]) -> Table | None:
    titles = {KL[mode]: KL_LABELS[mode] for mode in KL}
    titles |= {f"exact_{name}": f"exact {title}" for name, title in titles.items()}
    shown = [name for name in titles if any(interval(run.evaluation.get(name)) for run in runs)]
    rows = [[run.name, *(measure_cell(run.evaluation.get(name)) for name in shown)] for run in runs]
    return Table(["run", *(titles[name] for name in shown)], rows) if shown else None
