"""A controller of eta that holds the KL between the modes at a target, as the paper reports it (0.2 nats per token).

The right eta moves with the task, the start and the steps; the KL that it is there for does not. The controller is an
integral one, on logarithms: a step multiplies eta by (target / KL)^GAIN, within bounds, so that a KL that wanders for
hundreds of steps is not chased, and one far above its target is braked at once.
"""

import math

GAIN = 0.01
RISE, FALL = 0.01, 0.05  # of log eta in one step, at most
BRAKE = 2.0  # from this many times the target on, eta falls by FALL in each step
CUT = 4.0  # from here on there is no bonus at all: what runs away loses what drives it
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
    elif kl >= BRAKE * target:
        change = -FALL
    else:
        change = min(GAIN * math.log(target / kl), RISE) if kl > 0 else RISE
    return min(max(eta * math.exp(change), start / RANGE), start * RANGE)


def applied_eta(eta: float, kl: float, target: float) -> float:
    """The eta with which a step trains, after one whose KL was `kl`: 0 beyond CUT times the target."""
    return 0.0 if kl >= CUT * target else eta
