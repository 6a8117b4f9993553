"""The controller of eta: literal steps, and simulated modes whose KL follows eta strongly, weakly, late and noisily."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy_split.algorithms.kl_target import applied_eta, next_eta


@pytest.mark.parametrize(
    ("kl", "factor"),
    [
        (0.2, 1.0),
        (0.1, math.exp(0.01 * math.log(2))),
        (0.3, math.exp(0.01 * math.log(2 / 3))),
        (0.01, math.exp(0.01)),  # far below: the bound
        *[(kl, math.exp(0.01)) for kl in (0.0, -0.1)],  # estimates can be that
        (0.399, math.exp(0.01 * math.log(0.2 / 0.399))),
        *[(kl, math.exp(-0.05)) for kl in (0.4, 5.0, math.inf)],  # twice the target: the brake
        (math.nan, 1.0),
    ],
)
def test_literal_steps(kl, factor):
    assert next_eta(0.3, kl, 0.2, 0.3) == pytest.approx(0.3 * factor, rel=1e-12)


def test_bounds():
    assert next_eta(0.3 * 16, 0.0, 0.2, 0.3) == 0.3 * 16
    assert next_eta(0.3 / 16, 9.0, 0.2, 0.3) == 0.3 / 16
    assert applied_eta(0.3, 0.79, 0.2) == 0.3
    assert applied_eta(0.3, 0.8, 0.2) == applied_eta(0.3, math.inf, 0.2) == 0.0
    for target, start in ((0.0, 0.3), (math.inf, 0.3), (0.2, 0.0), (math.nan, 1.0)):
        with pytest.raises(ValueError, match="must be a finite number above 0"):
            next_eta(0.3, 0.1, target, start)


def simulated(gain, power, delay, noise, *, steps, seed, target=0.2, start=0.3):
    """KL(t+1) = KL(t) + (gain * eta^power - KL(t)) / delay, measured with noise: [(eta, KL, trained with)]"""
    draw, eta, kl, measured, seen = random.Random(seed), start, 0.002, 0.002, []
    for _ in range(steps):
        used = applied_eta(eta, measured, target)
        kl += (gain * used**power - kl) / delay
        measured = kl * math.exp(noise * draw.gauss(0, 1))
        seen.append((eta, kl, used))
        eta = next_eta(eta, measured, target, start)
    return seen


@settings(max_examples=60, deadline=None)
@given(
    needed=st.floats(
        0.06, 2.4
    ),  # the eta at which the modes would be at the target: 5 times below to 8 above the start
    power=st.floats(0.5, 2.0),
    delay=st.floats(1, 60),
    noise=st.floats(0, 0.3),
    seed=st.integers(0, 100),
)
def test_it_converges_on_modes_of_any_gain(needed, power, delay, noise, seed):
    seen = simulated(0.2 / needed**power, power, delay, noise, steps=3000, seed=seed)
    last = [kl for _, kl, _ in seen[-1000:]]
    assert sum(last) / len(last) == pytest.approx(0.2, rel=0.15)
    assert max(last) < 0.4


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=300), st.floats(1e-3, 10), st.floats(1e-3, 2))
def test_it_never_leaves_its_bounds_whatever_is_measured(measured, start, target):
    eta = start
    for kl in measured:
        following = next_eta(eta, kl, target, start)
        assert start / 16 * (1 - 1e-12) <= following <= start * 16 * (1 + 1e-12)
        assert math.exp(-0.05) * (1 - 1e-9) <= following / eta <= math.exp(0.01) * (1 + 1e-9)
        assert applied_eta(following, kl, target) in (0.0, following)
        eta = following


@pytest.mark.parametrize("seed", range(5))
def test_modes_that_run_away_are_stopped(seed):
    """Above eta 0.5 the KL grows by itself, faster than the controller could follow if it only divided."""
    draw, eta, kl, highest = random.Random(seed), 0.3, 0.01, 0.0
    for _ in range(2000):
        used = applied_eta(eta, kl, 0.2)
        growth = 0.1 * (used - 0.5) if used > 0.5 else -0.01
        kl = min(max(kl * math.exp(growth + 0.02 * draw.gauss(0, 1)), 1e-3), 50.0)
        highest = max(highest, kl)
        eta = next_eta(eta, kl, 0.2, 0.3)
    assert 0.2 < highest < 1.2
