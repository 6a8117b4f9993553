"""Evaluations of a report: pass@k, every measure of both modes, the KL between them, and runs compared in pairs."""

from collections.abc import Sequence
from typing import Any

from policy_split.evaluation.comparison import compare
from policy_split.modes import HIGH_ENTROPY, MODE_NAMES, MODES

from .charts import Series, line_chart
from .page import element, escape, table
from .runs import Run, interval, number, section
from .training import KL, KL_LABELS, run_color, run_label, run_legend

MEASURES = {
    "accuracy": "accuracy",
    "best_of_n": "best of n",
    "distinct_correct": "different correct answers",
    "distinct_correct_8": "different correct answers of 8",
    "entropy": "entropy (nats/token)",
    "mean_length": "length (tokens)",
}


def evaluation_section(runs: Sequence[Run]) -> str:
    evaluated = [run for run in runs if run.evaluation]
    lines = [
        element("p", escape(f"{run.name} has no evaluation.json: see policy-split eval."), {"class": "missing"})
        for run in runs
        if not run.evaluation
    ]
    if not evaluated:
        return "".join(lines)
    intervals = "In brackets and as bands: 95 % intervals over the questions, where the evaluation has them."
    chart = line_chart("pass-at-k", "pass@k", _pass_curves(runs), "k", "share of questions", powers=True)
    parts = [*lines, element("p", intervals, {"class": "quiet"}), run_legend(runs)]
    parts += [element("div", chart, {"class": "charts"}), _measures(evaluated), _divergences(evaluated)]
    parts += [_against(evaluated[0], other) for other in evaluated[1:]]
    return "".join(parts)


def _pass_curves(runs: Sequence[Run]) -> list[Series]:
    curves = []
    for place, run in enumerate(runs):
        for mode in MODES:
            found = section(section(section(run.evaluation, "modes"), MODE_NAMES[mode]), "pass_at_k")
            known = {int(k): interval(value) for k, value in found.items() if str(k).isdecimal() and int(k) > 0}
            points = [(float(k), known[k]) for k in sorted(known) if known[k] is not None]
            # where a point has no interval, its band has no width there
            low, high = ([y[0] if y[side] is None else y[side] for _, y in points] for side in (1, 2))
            x, y = [k for k, _ in points], [y[0] for _, y in points]
            look = (run_color(runs, place, mode), mode == HIGH_ENTROPY)
            curves.append(Series(run_label(runs, run, mode), x, y, *look, low, high))
    return curves


def _measures(runs: Sequence[Run]) -> str:
    """Every number that some mode of some run has, a row for each run and mode."""
    modes = [(run, mode, section(section(run.evaluation, "modes"), mode)) for run in runs for mode in MODE_NAMES]
    measured = dict.fromkeys(
        name for _, _, mode in modes for name, value in mode.items() if name != "pass_at_k" and interval(value)
    )
    names = [*(name for name in MEASURES if name in measured), *(name for name in measured if name not in MEASURES)]
    if not names:
        return element("p", "The evaluations have no numbers of a mode to compare.", {"class": "missing"})
    rows = []
    for run, mode, values in modes:
        samples = [number(run.evaluation.get(name)) for name in ("num_questions", "num_samples")]
        counts = [f"{count:.0f}" if count is not None else "–" for count in samples]
        cells = [_interval(values.get(name)) for name in names]
        rows.append([escape(f"{run.name}, {mode.replace('_', '-')}"), *cells, *counts])
    head = ["run and mode", *(MEASURES.get(name, name.replace("_", " ")) for name in names), "questions", "samples"]
    return element("h3", "Comparison") + table(head, rows)


def _against(first: Run, other: Run) -> str:
    """The other run minus the first, paired by question: possible where both have answered the same ones."""
    heading = element("h3", escape(f"{other.name} minus {first.name}, question by question"))
    try:
        compared = compare(other.evaluation, first.evaluation)
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        RuntimeError,
    ) as error:  # files of other tools have what they like
        return heading + element("p", escape(f"Cannot be compared: {error}"), {"class": "missing"})
    rows = []
    for mode in MODE_NAMES:
        values = section(section(compared, "modes"), mode)
        passes = {f"pass@{k}": value for k, value in section(values, "pass_at_k").items()}
        values = {name: value for name, value in values.items() if name != "pass_at_k"} | passes
        for name, value in values.items():
            if interval(value.get("difference")):
                measure = {**value, "mean": value["difference"]}
                label = f"{mode.replace('_', '-')}: {MEASURES.get(name, name.replace('_', ' '))}"
                rows.append([escape(label), _interval(measure), f"{value['p_value']:.3g}"])
    note = (
        "Intervals and p-values (two-sided, paired) are over the questions of these two runs alone, not corrected for "
        "the number of rows; they say nothing about other seeds."
    )
    return heading + element("p", note, {"class": "quiet"}) + table(["mode: measure", "difference", "p"], rows)


def _divergences(runs: Sequence[Run]) -> str:
    titles = {KL[mode]: KL_LABELS[mode] for mode in KL}
    titles |= {f"exact_{name}": f"exact {title}" for name, title in titles.items()}
    shown = [name for name in titles if any(interval(run.evaluation.get(name)) for run in runs)]
    if not shown:
        return element("p", "The evaluations have no KL between the modes.", {"class": "missing"})
    rows = [[escape(run.name), *(_interval(run.evaluation.get(name)) for name in shown)] for run in runs]
    return element("h3", "KL between the modes, nats per token") + table(["run", *(titles[n] for n in shown)], rows)


def _interval(value: Any) -> str:
    found = interval(value)
    if found is None:
        return "–"
    mean, low, high = found
    return f"{mean:.4g}" if low is None else f"{mean:.4g} {element('small', f'[{low:.4g}, {high:.4g}]')}"
