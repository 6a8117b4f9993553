"""A chart as SVG by matplotlib, for where no script may run: in the page's colors, which follow light and dark."""

import re
from typing import Any

import numpy as np

from policy_split.extras import import_extra
from policy_split.modes import HIGH_ENTROPY

from .charts import COLORS, Chart, Series, line_of, smooth
from .svg import svg_of

SIZE = (5.2, 3.4)  # inches; the page scales it
# matplotlib wants colors that it knows: each stands for a variable of the page's style
QUIET, EDGE = "#00000a", "#00000b"
PALETTE = [f"#00000{number}" for number in range(1, COLORS + 1)]  # not black, which may be left out of a file
VARIABLES = {stand_in: f"var(--c{number})" for number, stand_in in enumerate(PALETTE)}
VARIABLES |= {QUIET: "var(--quiet)", EDGE: "var(--edge)"}
STYLE = {
    "font.size": 11,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": QUIET,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": EDGE,
    "grid.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def drawing(chart: Chart) -> str:
    """An svg element that bears the chart's title and words; ImportError without matplotlib."""
    asked_by = "policy-split report --static"
    matplotlib = import_extra("matplotlib", asked_by)
    with matplotlib.rc_context(STYLE):
        figure = import_extra("matplotlib", asked_by, "matplotlib.figure").Figure(figsize=SIZE, layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        for curve in chart.drawn:
            _draw(axes, curve)
        _scale(axes, chart)
        return _inside_a_page(svg_of(figure, chart.name, asked_by), chart.name)


def _draw(axes: Any, curve: Series) -> None:
    raw, color = np.asarray(curve.y, float), PALETTE[curve.color % COLORS]
    line, whole = line_of(curve.x, smooth(raw)), line_of(curve.x, raw)
    if band := curve.band:
        axes.fill_between(*band, color=color, alpha=0.15, linewidth=0)
    if line != whole:
        axes.plot(whole.x, whole.y, color=color, alpha=0.28, linewidth=1, zorder=1.5)
    axes.plot(line.x, line.y, "--" if curve.mode == HIGH_ENTROPY else "-", color=color, linewidth=1.8)
    if line.alone:
        axes.plot(*zip(*line.alone, strict=True), "o", color=color, markersize=4)


def _scale(axes: Any, chart: Chart) -> None:
    axes.set(xlabel=chart.x_label, ylabel=chart.y_label)
    if chart.from_zero:
        axes.set_ylim(bottom=0)
    if chart.powers:
        places = sorted({x for curve in chart.drawn for x in curve.x})
        axes.set_xscale("log", base=2)
        axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.minorticks_off()
    else:
        axes.xaxis.get_major_locator().set_params(integer=True)


def _inside_a_page(svg: str, name: str) -> str:
    """The element alone, with names that no other of the page has, as wide as its place."""
    start = svg.index("<svg")
    body = svg[svg.index(">", start) + 1 :]
    width, height = (72 * side for side in SIZE)
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", body)
    body = re.sub("#00000[1-9a-f]", lambda color: VARIABLES[color[0]], body)
    described = f'role="img" aria-labelledby="{name}-title {name}-words"'
    return f'<svg viewBox="0 0 {width:g} {height:g}" {described}>{body.strip()}'
