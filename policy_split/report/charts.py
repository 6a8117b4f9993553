"""What a chart of a report shows: curves over steps or over k, smoothed, thinned, in words and in numbers."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from .runs import spread
from .tables import Table

COLORS = 8  # of the page's palette
LARGEST_NUMBER_OF_POINTS = 500
TABLE_ROWS = 11
SMOOTHED_SHARE = 20  # a smoothed value is the mean over this part of the curve: 1/20


@dataclass
class Series:
    """One curve: values over places, NaN for a gap; run, mode and color are numbers (of the page's palette)."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    color: int
    run: int
    mode: int
    low: Sequence[float] = ()  # of an interval around y, where it has one
    high: Sequence[float] = ()

    @property
    def band(self) -> tuple[list[float], list[float], list[float]] | None:
        """(x, low, high) where both are finite; None where they are no area."""
        points = [each for each in zip(self.x, self.low, self.high, strict=False) if all(map(math.isfinite, each))]
        x, low, high = (list(side) for side in zip(*points, strict=True)) if len(points) > 1 else ([], [], [])
        return (x, low, high) if x else None


@dataclass
class Chart:
    """Curves without a finite value are named in place of drawn; powers: each mark on x is a power of two."""

    name: str
    title: str
    series: Sequence[Series]
    x_label: str
    y_label: str
    powers: bool = False
    note: str = ""
    drawn: list[Series] = field(init=False)
    absent: str = field(init=False)

    def __post_init__(self) -> None:
        self.drawn = [curve for curve in self.series if np.isfinite(np.asarray(curve.y, float)).any()]
        labels = [curve.label for curve in self.series if not any(curve is other for other in self.drawn)]
        self.absent = ", ".join(labels) if labels else "" if self.drawn else "no run has them"

    @property
    def words(self) -> str:
        """For readers who do not see it: where every curve begins and ends."""
        return f"{self.y_label} over {self.x_label}. " + " ".join(_in_words(each, self.x_label) for each in self.drawn)

    @property
    def numbers(self) -> Table:
        """A few places from the first to the last."""
        places = sorted({x for curve in self.drawn for x in curve.x})
        columns = [dict(zip(curve.x, curve.y, strict=True)) for curve in self.drawn]
        rows = [
            [f"{x:g}", *(_cell(column.get(x, math.nan)) for column in columns)]
            for x in (places[at] for at in spread(len(places), TABLE_ROWS))
        ]
        return Table([self.x_label, *(curve.label for curve in self.drawn)], rows)

    @property
    def from_zero(self) -> bool:
        """Whether the axis of y begins at 0: it does where it nearly reaches it."""
        values = [value for each in self.drawn for part in (each.y, each.low, each.high) for value in part]
        finite = [value for value in values if math.isfinite(value)]
        return min(finite) >= 0 and min(finite) < 0.4 * max(finite)


@dataclass
class Line:
    """What is drawn of values: places and values, NaN where the line breaks, and values that stand alone."""

    x: list[float]
    y: list[float]
    alone: list[tuple[float, float]]


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


def line_of(x: Sequence[float], values: np.ndarray) -> Line:
    """The thinned values, the line broken wherever one was missing between two of them."""
    places = thin(values)
    stretches = list(_stretches(values, places[np.isfinite(values[places])]))
    line = Line([], [], [(x[stretch[0]], float(values[stretch[0]])) for stretch in stretches if len(stretch) == 1])
    for number, stretch in enumerate(stretches):
        if number:
            line.x.append(x[stretch[0]])
            line.y.append(math.nan)
        line.x += [x[place] for place in stretch]
        line.y += values[stretch].tolist()
    return line


def _stretches(values: np.ndarray, places: np.ndarray) -> Iterator[np.ndarray]:
    """The places, parted where a value between two of them is not finite."""
    gaps = np.cumsum(~np.isfinite(values))
    return (part for part in np.split(places, np.flatnonzero(np.diff(gaps[places])) + 1) if len(part))


def _in_words(curve: Series, x_label: str) -> str:
    finite = [(x, y) for x, y in zip(curve.x, curve.y, strict=True) if math.isfinite(y)]
    (first, start), (last, end) = finite[0], finite[-1]
    if first == last:
        return f"{curve.label}: {start:.4g} at {x_label} {first:g}."
    return f"{curve.label}: {start:.4g} at {x_label} {first:g}, {end:.4g} at {x_label} {last:g}."


def _cell(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "–"
