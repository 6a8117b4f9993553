"""The trainer's own share of a step on the CPU preset: `python -m pytest benchmarks/trainer/test_profile.py -s`."""

import statistics

import pytest

from . import profile

STEPS, WARM_START_STEPS, AT_MOST = 12, 300, 0.10


@pytest.fixture(scope="module")
def found():
    warmed = profile.warmed_model(WARM_START_STEPS, seed=1)
    steps = profile.profile(warmed, ("policy_split", "grpo"), STEPS)
    print("\n" + profile.report(steps))
    return steps


@pytest.mark.parametrize("algorithm", ["policy_split", "grpo"])
def test_own_share(found, algorithm):
    """A ratio within each step, its median over steps: what else the machine does stretches both parts."""
    assert statistics.median(profile.share(step, profile.OWN) for step in found[algorithm]) <= AT_MOST


@pytest.mark.parametrize("algorithm", ["policy_split", "grpo"])
def test_every_phase_was_seen(found, algorithm):
    assert len(found[algorithm]) == STEPS
    for step in found[algorithm]:
        assert set(step) == set(profile.MODEL) | set(profile.OWN)
        assert all(seconds > 0 for seconds in step.values())


def test_policy_split_of_grpo(found):
    """Twice the rows to score and to train on, the same generation: no more than 2.5 times a step."""
    pairs = zip(found["policy_split"], found["grpo"], strict=True)
    assert statistics.median(sum(a.values()) / sum(b.values()) for a, b in pairs) <= 2.5
