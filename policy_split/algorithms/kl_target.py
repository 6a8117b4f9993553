"""A controller of eta that holds the KL between the modes at a target, as the paper reports it (0.2 nats per token).

The right eta moves with the task, the start and the steps; the KL that it is there for does not. But the KL follows eta
by hundreds of steps, so that a controller in haste winds eta up before anything has come of it. This one has two parts.
The slow one multiplies eta by (target / KL)^gain in each step, with a gain that is larger where eta has to fall. The
quick one only brakes: above the target a step trains with eta * (target / KL)^2 of a running mean of the KL.
"""

import math
from typing import NamedTuple

GAIN_BELOW, GAIN_ABOVE = 0.002, 0.006  # the target
RISE, FALL = 0.002, 0.01  # of log eta in one step, at most
WEIGHT = 0.1  # of a step in the running mean: noise is not chased, and modes that part at once do not swing
CUT = 4.0  # from this many times the target on there is no bonus at all: what runs away loses what drives it
RANGE = 16.0  # eta stays between start / RANGE and start * RANGE


def next_eta(eta: float, kl: float, target: float, start: float) -> float:
    """eta of the next step, after a step whose KL was `kl` (nats per token); `start` is the eta of the first step.

    A KL of 0 or below, which an estimate can have, is one far under the target; infinity is one far above it; NaN says
    nothing, and eta stays. ValueError: target or start is not a finite number above 0.
    """
    for name, value in (("target", target), ("start", start)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value} must be a finite number above 0")
    if math.isnan(kl):
        change = 0.0
    elif kl <= target:
        change = min(GAIN_BELOW * math.log(target / kl), RISE) if kl > 0 else RISE
    else:
        change = -min(GAIN_ABOVE * math.log(kl / target), FALL)
    return min(max(eta * math.exp(change), start / RANGE), start * RANGE)


def next_mean(mean: float, kl: float, target: float) -> float:
    """The running mean of the KL after one more step, whose part in it ends at twice CUT times the target.

    0 before the first step; NaN is no measurement.
    """
    if math.isnan(kl):
        return mean
    kl = min(max(kl, 0.0), 2 * CUT * target)
    return mean + WEIGHT * (kl - mean) if mean > 0 else kl


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

    def applied(self, target: float) -> float:
        """The eta of the next step."""
        return applied_eta(*self, target)

    def after(self, kl: float, target: float, start: float) -> "HeldEta":
        """After a step with that KL; NaN is no measurement."""
        eta, mean = next_eta(self.eta, kl, target, start), next_mean(self.mean, kl, target)
        return HeldEta(eta, self.kl if math.isnan(kl) else kl, mean)
