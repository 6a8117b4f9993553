"""Means over seeds with their intervals, and paired differences: a seed is what is drawn, one number each."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from policy_split.extras import import_extra

LEVEL = 0.95


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
    mean, half = _mean_and_half(np.asarray(values, float))
    return Estimate(mean, mean - half, mean + half)


def difference(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """ours - theirs, seed by seed: mean, 95 % interval and two-sided p-value of the paired t-test.

    NaN where one seed leaves them open; p is 1 where every difference is 0, and 0 where all are the same other number.
    ValueError: not as many of one as of the other.
    """
    ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
    if ours.shape != theirs.shape:
        raise ValueError(f"{len(ours)} and {len(theirs)} seeds: a paired difference needs the same ones")
    deltas = ours - theirs
    mean, half = _mean_and_half(deltas)
    if len(deltas) < 2:
        p_value = float("nan")
    elif half == 0:
        p_value = 1.0 if mean == 0 else 0.0
    else:
        t = abs(mean) / (deltas.std(ddof=1) / len(deltas) ** 0.5)
        p_value = float(2 * _student(len(deltas)).sf(t))
    return Difference(mean, mean - half, mean + half, p_value)


def _mean_and_half(values: np.ndarray) -> tuple[float, float]:
    if len(values) < 2:
        return float(values.mean()), float("nan")
    half = _student(len(values)).ppf((1 + LEVEL) / 2) * values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean()), float(half)


def _student(count: int):
    return import_extra("scipy", "policy-split study", "scipy.stats").t(count - 1)
