"""A chart as a figure of Plotly: values on hovering; its colors are put in by the page, which knows light and dark."""

import html
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from plotly import graph_objects

from policy_split.modes import HIGH_ENTROPY

from .charts import COLORS, Chart, Series, line_of, smooth
from .text import shortened, visible

HEIGHT = 280
DIGITS = 6  # of a value in the file
FEW_STEPS = 6  # up to here a mark at every step


def figure_json(chart: Chart) -> str:
    """{"data", "layout"} for Plotly, safe inside a script element.

    `meta` of a trace is its run, mode and color: by them the page's script colors and switches it.
    """
    traces = [trace for curve in chart.drawn for trace in _traces(curve)]
    traces.sort(key=lambda trace: trace.hoverinfo != "skip")  # no line behind another's values
    return str(graph_objects.Figure(traces, layout=_layout(chart)).to_json())


def _layout(chart: Chart) -> dict[str, Any]:
    places = sorted({x for curve in chart.drawn for x in curve.x})
    x: dict[str, Any] = {"showgrid": False, "ticks": "outside", "showline": True, "zeroline": False}
    x |= {"title": {"text": chart.x_label, "standoff": 8}, "unifiedhovertitle": {"text": f"{chart.x_label} %{{x}}"}}
    if chart.powers:
        x |= {"type": "log", "tickvals": places, "ticktext": [f"{place:g}" for place in places]}
    elif places[-1] - places[0] <= FEW_STEPS:
        x |= {"dtick": 1}
    y = {"title": {"text": chart.y_label, "standoff": 8}, "nticks": 6, "exponentformat": "e", "zeroline": False}
    y |= {"rangemode": "tozero"} if chart.from_zero else {}
    return {
        "template": {},
        "height": HEIGHT,
        "margin": {"l": 64, "r": 12, "t": 12, "b": 44},
        "showlegend": False,  # the page's own switches every chart at once
        "hovermode": "x unified",
        "hoverlabel": {"namelength": -1},
        "uirevision": "kept",  # a zoom outlives a switch
        "xaxis": x,
        "yaxis": y,
    }


def _traces(curve: Series) -> Iterator[graph_objects.Scatter]:
    """The band, the values themselves, the smoothed line, and what of it stands alone."""
    raw = np.asarray(curve.y, float)
    line, whole = line_of(curve.x, smooth(raw)), line_of(curve.x, raw)
    meta = {"run": curve.run, "mode": curve.mode, "color": curve.color % COLORS}
    silent: dict[str, Any] = {"meta": meta, "hoverinfo": "skip"}
    # Plotly reads some markup in names
    shown: dict[str, Any] = {"meta": meta, "name": html.escape(visible(shortened(curve.label)), quote=False)}
    if band := curve.band:
        x, low, high = band
        yield _lines([*x, *reversed(x)], [*high, *reversed(low)], 0, fill="toself", opacity=0.15, **silent)
    template = "%{y:.4~g}"
    if line != whole:
        yield _lines(whole.x, whole.y, 1, opacity=0.28, **silent)
        values = dict(zip(curve.x, curve.y, strict=True))
        shown["customdata"] = [values[place] for place in line.x]
        template += " (unsmoothed %{customdata:.4~g})"
    dash = "dash" if curve.mode == HIGH_ENTROPY else "solid"
    yield _lines(line.x, line.y, 2, dash=dash, hovertemplate=template, **shown)
    if line.alone:
        dots = dict(zip(("x", "y"), zip(*line.alone, strict=True), strict=True))
        yield graph_objects.Scatter(**dots, mode="markers", marker={"size": 6}, **silent)


def _lines(x: list[float], y: list[float], width: int, dash: str = "solid", **more: Any) -> graph_objects.Scatter:
    known = [float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None for value in y]
    return graph_objects.Scatter(x=x, y=known, mode="lines", line={"width": width, "dash": dash}, **more)
