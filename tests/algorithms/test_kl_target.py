"""The controller of eta: literal steps, and simulated modes whose KL follows eta strongly, weakly, late and noisily."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy_split.algorithms.kl_target import HeldEta, applied_eta, expected_kl, next_eta, next_mean


@pytest.mark.parametrize(
    ("kl", "factor"),
    [
        (0.2, 1.0),
        (0.1, math.exp(0.006 * math.log(2))),
        (0.3, math.exp(0.02 * math.log(2 / 3))),
        (0.01, math.exp(0.01)),  # far below: the bound
        *[(kl, math.exp(0.01)) for kl in (0.0, -0.1, -math.inf)],  # estimates can be that
        (0.8, math.exp(0.02 * math.log(0.2 / 0.8))),
        *[(kl, math.exp(-0.03)) for kl in (5.0, 1e300, math.inf)],
        (math.nan, 1.0),
    ],
)
def test_literal_steps(kl, factor):
    assert next_eta(0.3, kl, 0.2, 0.3) == pytest.approx(0.3 * factor, rel=1e-12)


@pytest.mark.parametrize(
    ("kl", "expected", "factor"),
    [
        (0.05, 0.1, math.exp(0.006 * math.log(2))),  # it rises by the expected one
        (0.1, 0.2, 1.0),
        *[(0.1, expected, 1.0) for expected in (0.3, math.inf)],  # and only the one that is there lets it fall
        (0.1, 0.0, math.exp(0.01)),
        (0.1, math.nan, 1.0),
        (0.3, 0.1, math.exp(0.02 * math.log(2 / 3))),
        (math.nan, 0.1, 1.0),
    ],
)
def test_literal_steps_by_what_is_expected(kl, expected, factor):
    assert next_eta(0.3, kl, 0.2, 0.3, expected) == pytest.approx(0.3 * factor, rel=1e-12)


@pytest.mark.parametrize(
    ("mean", "slow_mean", "expected"),
    [
        (0.1, 0.1, 0.1),
        (0.1, 0.2, 0.1 / 2**1.875),
        (0.2, 0.1, 0.2 * 2**1.875),
        (1.0, 5e-324, math.exp(100)),
        (5e-324, 1.0, 0.0),
        (0.1, 0.0, 0.1),
        (0.0, 0.0, 0.0),
    ],
)
def test_literal_expectations(mean, slow_mean, expected):
    assert expected_kl(mean, slow_mean) == pytest.approx(expected, rel=1e-12)


def test_the_expectation_is_that_of_steady_growth():
    """A KL that grows by 0.2 % a step: what is expected is what it is 75 steps later."""
    held, growth = HeldEta(0.3), 1.002
    for step in range(1000):
        held = held.after(1e-4 * growth**step, 0.2, 0.3)
    assert expected_kl(held.mean, held.slow_mean) == pytest.approx(1e-4 * growth ** (999 + 75), rel=0.1)


def test_bounds():
    assert next_eta(0.3 * 16, 0.0, 0.2, 0.3) == 0.3 * 16
    assert next_eta(0.3 / 16, 9.0, 0.2, 0.3) == 0.3 / 16
    for target, start in ((0.0, 0.3), (math.inf, 0.3), (0.2, 0.0), (math.nan, 1.0)):
        with pytest.raises(ValueError, match="must be a finite number above 0"):
            next_eta(0.3, 0.1, target, start)


@pytest.mark.parametrize(
    ("kl", "mean", "eta"),
    [
        (0.0, 0.0, 0.3),  # before the first step
        (0.1, 0.2, 0.3),
        (0.1, 0.4, 0.3 / 4),  # the mean brakes, not one measurement
        (0.79, 0.1, 0.3),
        (0.8, 0.1, 0.0),
        (math.inf, 0.1, 0.0),
        (-0.1, 0.1, 0.3),
    ],
)
def test_literal_brakes(kl, mean, eta):
    assert applied_eta(0.3, kl, mean, 0.2) == pytest.approx(eta, rel=1e-12)


@pytest.mark.parametrize(
    ("mean", "kl", "following"),
    [(0.0, 0.3, 0.3), (0.3, 0.4, 0.31), (0.3, math.nan, 0.3), (0.3, -1.0, 0.27), (0.3, math.inf, 0.43)],
)
def test_literal_means(mean, kl, following):
    assert next_mean(mean, kl, 0.2) == pytest.approx(following, rel=1e-12)


def held(measure, *, steps, target=0.2, start=0.3):
    """[(eta, KL, trained with)] of modes whose KL, after a step with that eta, is measure(eta)."""
    controller, seen = HeldEta(start), []
    for _ in range(steps):
        used = controller.applied(target)
        kl = measure(used)
        seen.append((controller.eta, kl, used))
        controller = controller.after(kl, target, start)
    return seen


def lagging(gain, power, delay, noise, *, seed):
    """Modes of KL(t+1) = KL(t) + (gain * eta^power - KL(t)) / delay, measured with noise."""
    draw, kl = random.Random(seed), 0.002

    def measure(eta):
        nonlocal kl
        kl += (gain * eta**power - kl) / delay
        return kl * math.exp(noise * draw.gauss(0, 1))

    return measure


# needed: the eta at which the modes would be at the target, 5 times below to 8 above the start
@settings(max_examples=60, deadline=None)
@given(
    needed=st.floats(0.06, 2.4),
    power=st.floats(0.5, 2.0),
    delay=st.floats(1, 200),
    noise=st.floats(0, 0.3),
    seed=st.integers(0, 100),
)
def test_it_converges_on_modes_of_any_gain(needed, power, delay, noise, seed):
    seen = held(lagging(0.2 / needed**power, power, delay, noise, seed=seed), steps=6000)
    last = [kl for _, kl, _ in seen[-1000:]]
    assert sum(last) / len(last) == pytest.approx(0.2, rel=0.2)


@settings(max_examples=60, deadline=None)
@given(needed=st.floats(0.3, 2.4), power=st.floats(0.5, 2.0), delay=st.floats(1, 300), seed=st.integers(0, 100))
def test_it_does_not_overshoot_where_the_kl_comes_late(needed, power, delay, seed):
    """The modes take up to 300 steps to part; haste would wind eta up meanwhile."""
    seen = held(lagging(0.2 / needed**power, power, delay, 0.0, seed=seed), steps=3000)
    assert max(kl for _, kl, _ in seen) < 0.3
    assert next(step for step, (_, kl, _) in enumerate(seen) if kl > 0.15) < 600  # and yet it gets there


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=300), st.floats(1e-3, 10), st.floats(1e-3, 2))
def test_it_never_leaves_its_bounds_whatever_is_measured(measured, start, target):
    held = HeldEta(start)
    for kl in measured:
        following = held.after(kl, target, start)
        assert start / 16 * (1 - 1e-12) <= following.eta <= start * 16 * (1 + 1e-12)
        assert -0.03 - 1e-9 <= math.log(following.eta / held.eta) <= 0.01 + 1e-9
        for mean in following[2:]:
            assert 0 <= mean <= 8 * target * (1 + 1e-12)
        assert 0 <= following.applied(target) <= following.eta
        held = following


@pytest.mark.parametrize("seed", range(5))
def test_modes_that_run_away_are_stopped(seed):
    """Above eta 0.5 the KL grows by itself, faster than the controller could follow if it only divided."""
    draw, kl = random.Random(seed), 0.01

    def measure(eta):
        nonlocal kl
        growth = 0.1 * (eta - 0.5) if eta > 0.5 else -0.01
        kl = min(max(kl * math.exp(growth + 0.02 * draw.gauss(0, 1)), 1e-3), 50.0)
        return kl

    seen = held(measure, steps=3000)
    assert 0.1 < max(kl for _, kl, _ in seen) < 0.6
