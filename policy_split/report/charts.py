"""Charts of a report: lines over steps or over k, as SVG with a title and a description in words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .page import element, escape, table
from .runs import spread

WIDTH, HEIGHT = 380, 250  # of the drawing; the page scales it, and on a phone its text keeps its size
LEFT, RIGHT, TOP, BOTTOM = 62, 10, 10, 38
LARGEST_NUMBER_OF_POINTS = 500
HOVER_POINTS = 32
TABLE_ROWS = 11
SMOOTHED_SHARE = 20  # a smoothed value is the mean over this part of the curve: 1/20


@dataclass
class Series:
    """One curve: values over places, NaN for a gap; `color` is a number of the page's palette."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    color: int
    dashed: bool = False
    low: Sequence[float] | None = None  # of an interval around y
    high: Sequence[float] | None = None


def smooth(values: np.ndarray) -> np.ndarray:
    """The mean of the finite values in a window of 1/20 of the curve, cut at its ends; gaps stay gaps."""
    half = len(values) // SMOOTHED_SHARE // 2
    here = np.isfinite(values)
    sums = np.concatenate(([0.0], np.cumsum(np.where(here, values, 0.0))))
    counts = np.concatenate(([0], np.cumsum(here)))
    places = np.arange(len(values))
    first, last = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    means = (sums[last] - sums[first]) / np.maximum(counts[last] - counts[first], 1)
    return np.where(here, means if half else values, np.nan)


def thin(values: np.ndarray, count: int = LARGEST_NUMBER_OF_POINTS) -> np.ndarray:
    """At most `count` places that keep the least and the greatest value of every stretch, so that spikes stay."""
    if len(values) <= count:
        return np.arange(len(values))
    kept = []
    for stretch in np.array_split(np.arange(len(values)), count // 2):
        finite = stretch[np.isfinite(values[stretch])]
        if len(finite) == 0:
            kept.append(stretch[0])
            continue
        kept += sorted({finite[values[finite].argmin()], finite[values[finite].argmax()]})
    return np.array(kept)


def line_chart(
    name: str, title: str, series: Sequence[Series], x_label: str, y_label: str, *, powers: bool = False, note: str = ""
) -> str:
    """A figure of all curves: pale raw values, smoothed lines, values on hovering, and its numbers as a table.

    powers: the axis of x has a power of two for every mark. Curves without a finite value are named in place of drawn.
    """
    drawn = [curve for curve in series if np.isfinite(np.asarray(curve.y, float)).any()]
    caption = element("figcaption", element("h3", escape(title)) + (element("p", escape(note)) if note else ""))
    absent = [curve.label for curve in series if not any(curve is other for other in drawn)]
    missing = element("p", escape(f"No values: {', '.join(absent) or 'no run has them'}."), {"class": "missing"})
    if not drawn:
        return element("figure", caption + missing)
    axes = _Axes(drawn, powers)
    body = [axes.draw(x_label, y_label)]
    body += [_band(curve, axes) for curve in drawn if curve.low is not None and curve.high is not None]
    body += [_curve(curve, axes) for curve in drawn]
    words = f"{y_label} over {x_label}. " + " ".join(_in_words(curve, x_label) for curve in drawn)
    head = element("title", escape(title), {"id": f"{name}-title"})
    head += element("desc", escape(words), {"id": f"{name}-words"})
    drawing = element(
        "svg",
        head + "".join(body),
        {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "role": "img", "aria-labelledby": f"{name}-title {name}-words"},
    )
    return element("figure", caption + drawing + (missing if absent else "") + _numbers(drawn, x_label))


class _Axes:
    def __init__(self, series: Sequence[Series], powers: bool):
        places = [float(x) for curve in series for x in curve.x]
        values = [v for curve in series for part in (curve.y, curve.low, curve.high) if part is not None for v in part]
        self.powers = powers
        self.marks = sorted({int(x) for x in places}) if powers else []
        self.left, self.right = _range([self.scaled(x) for x in places], pad=0.0)
        low, high = _range([v for v in values if math.isfinite(v)], pad=0.05)
        finite = [v for v in values if math.isfinite(v)]
        # an axis that nearly reaches zero begins there, and none goes below it for the sake of the margin alone
        self.bottom = 0.0 if min(finite) >= 0 and low < 0.35 * high else low
        self.top = 0.0 if max(finite) <= 0 < high and self.bottom < 0 else high

    def scaled(self, x: float) -> float:
        return math.log2(x) if self.powers else x

    def x(self, value: float) -> float:
        share = (self.scaled(value) - self.left) / (self.right - self.left)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.bottom) / (self.top - self.bottom)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def draw(self, x_label: str, y_label: str) -> str:
        lines, end, base = [], WIDTH - RIGHT, HEIGHT - BOTTOM
        for value, text in ticks(self.bottom, self.top, 5):
            at = _short(self.y(value))
            lines.append(f'<path class="grid" d="M{LEFT} {at}H{end}"/>')
            lines.append(f'<text x="{LEFT - 6}" y="{at}" dy="0.35em" text-anchor="end">{escape(text)}</text>')
        marks = [(x, str(x)) for x in self.marks] if self.powers else ticks(self.left, self.right, 6, whole=True)
        for value, text in marks:
            at = _short(self.x(value))
            lines.append(f'<path class="mark" d="M{at} {base}v4"/>')
            lines.append(f'<text x="{at}" y="{base + 16}" text-anchor="middle">{escape(text)}</text>')
        lines.append(f'<path class="axis" d="M{LEFT} {TOP}V{base}H{end}"/>')
        middle = (LEFT + end) / 2
        lines.append(f'<text x="{middle}" y="{HEIGHT - 5}" text-anchor="middle">{escape(x_label)}</text>')
        where = f"translate(11 {(TOP + base) / 2}) rotate(-90)"
        lines.append(f'<text transform="{where}" text-anchor="middle">{escape(y_label)}</text>')
        return "".join(lines)


def ticks(low: float, high: float, about: int, *, whole: bool = False) -> list[tuple[float, str]]:
    """Round values inside [low, high] with their texts: steps of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    step = max(1.0, step) if whole else step
    values = [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    return [(value, f"{value + 0.0:.6g}") for value in values]


def _range(values: Sequence[float], pad: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-30):
        margin = abs(low) * 0.1 or 0.5
        return low - margin, high + margin
    return low - pad * (high - low), high + pad * (high - low)


def _curve(curve: Series, axes: _Axes) -> str:
    raw = np.asarray(curve.y, float)
    line = smooth(raw)
    look = f"c{curve.color % 8}{' dashed' if curve.dashed else ''}"
    parts = []
    if not np.array_equal(line, raw, equal_nan=True):
        parts.append(f'<path class="raw {look}" d="{_path(curve.x, raw, thin(raw), axes)}"/>')
    parts.append(f'<path class="line {look}" d="{_path(curve.x, line, thin(line), axes)}"/>')
    finite = np.flatnonzero(np.isfinite(line))
    for place in finite[spread(len(finite), HOVER_POINTS)]:
        at = f'cx="{_short(axes.x(curve.x[place]))}" cy="{_short(axes.y(line[place]))}"'
        text = escape(f"{curve.label}, {curve.x[place]:g}: {line[place]:.4g}")
        parts.append(f'<circle class="hover c{curve.color % 8}" {at} r="5"><title>{text}</title></circle>')
    return "".join(parts)


def _path(x: Sequence[float], y: np.ndarray, places: np.ndarray, axes: _Axes) -> str:
    """A line through the finite values, broken at gaps; a value between two gaps is a dot (a line of no length)."""
    parts, drawing = [], False
    gaps = np.concatenate(([0], np.cumsum(~np.isfinite(y))))
    previous = 0
    for place in places:
        if not np.isfinite(y[place]):
            drawing = False
            continue
        point = f"{_short(axes.x(x[place]))} {_short(axes.y(y[place]))}"
        whole = drawing and gaps[place] == gaps[previous]
        parts.append(f"L{point}" if whole else f"M{point}h0")
        drawing, previous = True, place
    return "".join(parts)


def _band(curve: Series, axes: _Axes) -> str:
    points = [
        (_short(axes.x(x)), _short(axes.y(low)), _short(axes.y(high)))
        for x, low, high in zip(curve.x, curve.low, curve.high, strict=True)
        if math.isfinite(low) and math.isfinite(high)
    ]
    there = [f"{x} {high}" for x, _, high in points]
    back = [f"{x} {low}" for x, low, _ in reversed(points)]
    return f'<path class="band c{curve.color % 8}" d="M{"L".join(there + back)}Z"/>' if len(points) > 1 else ""


def _in_words(curve: Series, x_label: str) -> str:
    finite = [(x, y) for x, y in zip(curve.x, curve.y, strict=True) if math.isfinite(y)]
    (first, start), (last, end) = finite[0], finite[-1]
    if first == last:
        return f"{curve.label}: {start:.4g} at {x_label} {first:g}."
    return f"{curve.label}: {start:.4g} at {x_label} {first:g}, {end:.4g} at {x_label} {last:g}."


def _numbers(series: Sequence[Series], x_label: str) -> str:
    places = sorted({x for curve in series for x in curve.x})
    shown = [places[at] for at in spread(len(places), TABLE_ROWS)]
    values = [dict(zip(curve.x, curve.y, strict=True)) for curve in series]
    rows = [[f"{x:g}", *(_cell(column.get(x, math.nan)) for column in values)] for x in shown]
    numbers = table([x_label, *(curve.label for curve in series)], rows)
    return element("details", element("summary", "Numbers") + numbers)


def _cell(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "–"


def _short(value: float) -> str:
    return f"{value:.1f}"
