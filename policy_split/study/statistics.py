"""Means over seeds with their intervals, and paired differences: a seed is what is drawn, one number each."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from policy_split.evaluation.tables import p_value_text

LEVEL = 0.95
ROUNDING = 1e-12  # of the largest value: values that differ by less are the same one


class Estimate(NamedTuple):
    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    mean: float
    low: float
    high: float
    p_value: float


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95 % interval of Student's t over seeds; no width is known from one seed: NaN."""
    drawn = np.asarray(values, float)
    return _estimate(drawn, np.abs(drawn).max())


def difference(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """ours - theirs, seed by seed: mean, 95 % interval and two-sided p-value of the paired t-test.

    NaN where one seed leaves them open; p is 1 where every difference is 0, and 0 where all are the same other number.
    ValueError: not as many of one as of the other.
    """
    left, right = np.asarray(ours, float), np.asarray(theirs, float)
    if left.shape != right.shape:
        raise ValueError(f"{len(left)} and {len(right)} seeds: a paired difference needs the same ones")
    deltas, largest = left - right, max(np.abs(left).max(), np.abs(right).max())
    if len(deltas) < 2:
        p_value = float("nan")
    elif _all_the_same(deltas, largest):
        p_value = 1.0 if abs(deltas.mean()) <= ROUNDING * largest else 0.0
    else:
        p_value = float(stats.ttest_1samp(deltas, 0.0).pvalue)
    return Difference(*_estimate(deltas, largest), p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrected for their number (Holm 1979): the chance of one false discovery among all stays below the level.

    NaN, which no seed or one leaves, stays NaN and counts for nothing.
    """
    known = sorted((p, place) for place, p in enumerate(p_values) if not np.isnan(p))
    corrected, largest = [float("nan")] * len(p_values), 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[place] = largest
    return corrected


def interval_text(values: Sequence[float], places: int) -> str:
    """Mean ± half of the interval; "-" where there is no number."""
    value = estimate(values)
    if np.isnan(value.mean):
        return "-"
    half = value.high - value.mean
    return f"{value.mean:.{places}f}" + ("" if np.isnan(half) else f" ±{half:.{places}f}")


def difference_text(delta: Difference, places: int) -> tuple[str, str]:
    """(mean [interval], p)"""
    interval = "" if np.isnan(delta.low) else f" [{delta.low:+.{places}f}, {delta.high:+.{places}f}]"
    return f"{delta.mean:+.{places}f}{interval}", p_text(delta.p_value)


def p_text(p_value: float) -> str:
    return "-" if np.isnan(p_value) else p_value_text(p_value)


def _estimate(values: np.ndarray, largest: float) -> Estimate:
    mean = float(values.mean())
    if len(values) < 2:
        return Estimate(mean, float("nan"), float("nan"))
    if _all_the_same(values, largest):  # where scipy's interval is of rounding errors, or NaN
        return Estimate(mean, mean, mean)
    low, high = stats.ttest_1samp(values, 0.0).confidence_interval(LEVEL)
    return Estimate(mean, float(low), float(high))


def _all_the_same(values: np.ndarray, largest: float) -> bool:
    return bool(np.ptp(values) <= ROUNDING * largest)
