"""The curves of a study as SVG, mean and range over the seeds: what training logs, and evaluations on the way."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from policy_split.extras import import_extra
from policy_split.modes import HIGH_ENTROPY, MODE_NAMES
from policy_split.report.svg import svg_of
from policy_split.storage.whole_folder import replace_text

from .curves import Curve

PANELS = {
    "entropy": "entropy of the rollouts (nats/token)",
    "reward": "reward on training questions",
    "kl": "KL(high-entropy || normal) (nats/token)",
}
EVALUATED = {  # beside those, where there are any
    "accuracy": "accuracy on held-out questions",
    "distinct_correct_8": "different correct of 8, held out",
}
COLUMNS = 3
BANDS = 10  # more of them in one panel hide each other
LOGARITHMIC = 10  # from this many times the median on, one curve would press the others flat


def draw_curves(curves: Sequence[Curve], target: Path) -> None:
    """Write the figure, the same file from the same curves; ImportError without matplotlib."""
    figure_class = import_extra("matplotlib", "policy-split study", "matplotlib.figure").Figure
    panels = PANELS | {name: title for name, title in EVALUATED.items() if any(c.panel == name for c in curves)}
    height = -(-len(panels) // COLUMNS)
    figure = figure_class(figsize=(13, 0.8 + 3.8 * height), layout="constrained")
    names = list(dict.fromkeys(curve.variant for curve in curves))
    lines: dict[str, Any] = {}
    grid = figure.subplots(height, COLUMNS).flatten()
    for empty in grid[len(panels) :]:
        empty.set_axis_off()
    for axes, (panel, title) in zip(grid, panels.items(), strict=False):
        shown = [curve for curve in curves if curve.panel == panel]
        for curve in shown:
            color, band = f"C{names.index(curve.variant) % 10}", len(shown) <= BANDS
            lines.setdefault(_label(curve), _draw(axes, curve, color, band))
        axes.set(title=title, xlabel="step")
        _scale(axes, shown)
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=4, frameon=False, fontsize="small")
    write_svg(figure, target)


def write_svg(figure: Any, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    replace_text(target, svg_of(figure, "policy-split", "policy-split study"))


def _draw(axes: Any, curve: Curve, color: str, band: bool) -> Any:
    style = "--" if curve.mode == MODE_NAMES[HIGH_ENTROPY] else "-"
    if band and curve.low != curve.high:  # one seed has none
        axes.fill_between(curve.steps, curve.low, curve.high, color=color, alpha=0.15, linewidth=0)
    (line,) = axes.plot(curve.steps, curve.mean, style, color=color, linewidth=1.4)
    return line


def _scale(axes: Any, curves: Sequence[Curve]) -> None:
    values = np.array([value for curve in curves for value in curve.mean])
    positive = values[np.isfinite(values) & (values > 0)]
    if len(positive) and positive.max() > LOGARITHMIC * np.median(positive):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)


def _label(curve: Curve) -> str:
    title = curve.title.replace("$", r"\$")  # matplotlib would read formulas
    return f"{title}, {curve.mode.replace('_', '-')}"
