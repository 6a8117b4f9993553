"""A controller of eta that holds the KL between the modes at a target, as the paper reports it (0.2 nats per token).

The right eta moves with the task, the start and the steps; the KL that it is there for does not. But the KL follows eta
by hundreds of steps, so that a controller in haste winds eta up before anything has come of it. This one has two parts.
The slow one multiplies eta by (target / KL)^gain in each step. While eta rises the KL is the one that is to be expected
some steps on, if it grows as it did: of two running means the quicker is ahead by that growth. It falls by the running
mean, and more quickly, since modes that have parted need less to stay apart. The quick one only brakes: above the
target a step trains with eta * (target / mean)^2.
"""

import math
from typing import NamedTuple

GAIN_BELOW, GAIN_ABOVE = 0.006, 0.02  # the target
RISE, FALL = 0.01, 0.03  # of log eta in one step, at most
WEIGHT = 0.1  # of a step in the running mean: noise is not chased, and modes that part at once do not swing
SLOW_WEIGHT = 0.02  # in the slower one, that the growth is read from
AHEAD = 75  # steps that are looked ahead
CUT = 4.0  # from this many times the target on there is no bonus at all: what runs away loses what drives it
RANGE = 16.0  # eta stays between start / RANGE and start * RANGE


def next_eta(eta: float, kl: float, target: float, start: float, expected: float | None = None) -> float:
    """eta of the next step, after a step whose KL was `kl` (nats per token); `start` is the eta of the first step.

    It falls by `kl`, and rises by `expected`, the KL some steps on (by default `kl`). One of 0 or below, which an
    estimate can have, is one far under the target; infinity is one far above it; NaN says nothing, and eta stays.
    ValueError: target or start is not a finite number above 0.
    """
    for name, value in (("target", target), ("start", start)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value} must be a finite number above 0")
    expected = kl if expected is None else expected
    if kl > target:
        change = -min(GAIN_ABOVE * math.log(kl / target), FALL)
    elif math.isnan(kl + expected) or expected >= target:
        change = 0.0
    else:
        change = min(GAIN_BELOW * math.log(target / expected), RISE) if expected > 0 else RISE
    return min(max(eta * math.exp(change), start / RANGE), start * RANGE)


def next_mean(mean: float, kl: float, target: float, weight: float = WEIGHT) -> float:
    """The running mean of the KL after one more step, whose part in it ends at twice CUT times the target.

    0 before the first step; NaN is no measurement.
    """
    if math.isnan(kl):
        return mean
    kl = min(max(kl, 0.0), 2 * CUT * target)
    return mean + weight * (kl - mean) if mean > 0 else kl


def expected_kl(mean: float, slow_mean: float) -> float:
    """The KL after AHEAD more steps of the growth between its running means.

    Of a KL that grows at a steady rate r a running mean of weight w lags behind by r / w.
    """
    if mean <= 0 or slow_mean <= 0:
        return mean
    growth = (math.log(mean) - math.log(slow_mean)) / (1 / SLOW_WEIGHT - 1 / WEIGHT)
    return mean * math.exp(min(AHEAD * growth, 100.0))  # far above any target long before


def applied_eta(eta: float, kl: float, mean: float, target: float) -> float:
    """The eta with which a step trains, after one whose KL was `kl`, with that running mean."""
    if kl >= CUT * target:
        return 0.0
    return eta if mean <= target else eta * (target / mean) ** 2


class HeldEta(NamedTuple):
    """The controller after some steps."""

    eta: float
    kl: float = 0.0  # of the last step
    mean: float = 0.0  # its running mean
    slow_mean: float = 0.0

    def applied(self, target: float) -> float:
        """The eta of the next step."""
        return applied_eta(self.eta, self.kl, self.mean, target)

    def after(self, kl: float, target: float, start: float) -> "HeldEta":
        """After a step with that KL; NaN is no measurement."""
        if math.isnan(kl):
            return self
        mean, slow_mean = next_mean(self.mean, kl, target), next_mean(self.slow_mean, kl, target, SLOW_WEIGHT)
        eta = next_eta(self.eta, mean, target, start, expected_kl(mean, slow_mean))
        return HeldEta(eta, kl, mean, slow_mean)
