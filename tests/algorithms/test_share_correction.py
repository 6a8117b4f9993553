"""Forms of the share correction: literal weights, what they do to advantages, and extreme ratios."""

import math

import pytest
import torch
from worked_example import EXAMPLE, LOGPROBS, MASK, REWARDS, ZERO, close, rows

from policy_split.algorithms.advantages import dual_mode_advantages
from policy_split.algorithms.share_correction import FORMS, positive, shaped, share_weights, truncated

RATIOS = torch.tensor([0.0, 0.1, 0.9, 1.0, 3.0, math.inf])
RIGHT, WRONG = torch.tensor(0.5), torch.tensor(-0.5)


@pytest.mark.parametrize(
    ("form", "correctness", "gamma", "weights"),
    [
        (truncated, RIGHT, 0.1, [0, 0.1, 0.9, 1, 1, 1]),
        (truncated, WRONG, 0.1, [0, 0.1, 0.9, 1, 1, 1]),
        (positive, RIGHT, 0.1, [1, 1, 1, 1, 1, 1]),
        (positive, WRONG, 0.1, [0, 0.1, 0.9, 1, 1, 1]),
        (positive, torch.tensor(0.0), 0.1, [0, 0.1, 0.9, 1, 1, 1]),  # a dead group: nothing to be sure of
        (shaped, RIGHT, 0.1, [0, 0.5, 0.9, 1 / 1.1, 3 / 3.1, 1]),
        (shaped, WRONG, 1.0, [0, 0.1 / 1.1, 0.9 / 1.9, 0.5, 0.75, 1]),
    ],
)
def test_literal_weights(form, correctness, gamma, weights):
    torch.testing.assert_close(form(RATIOS, correctness, gamma), torch.tensor(weights, dtype=torch.float32))


def test_own_responses_weigh_1():
    logprobs = -torch.arange(16, dtype=torch.float64).view(2, 2, 1, 2, 2)
    correctness = torch.ones(2, 2, 1, 2, 1, dtype=torch.float64)
    assert share_weights("none", logprobs, correctness, 0.1) == 1.0
    for form in ("truncated", "positive", "shaped"):
        weights = share_weights(form, logprobs, correctness, 0.1)
        assert torch.equal(weights[0], torch.ones_like(weights[0]))
    # the borrowed response's block minus that of the same response under its writer's prompt: -8 and -4 in e
    shaped_weights = share_weights("shaped", logprobs, correctness, 0.1)[1, :, 0, 0, 0]
    expected = [math.exp(-k) / (math.exp(-k) + 0.1) for k in (4, 12)]
    torch.testing.assert_close(shaped_weights, torch.tensor(expected, dtype=torch.float64))


def test_literal_advantages():
    """Ratios of c, d under N: e^-4 e^2 | e^-2, of a, b under H: 1 | e^-4; d alone is right."""
    e2, e4 = math.exp(-2), math.exp(-4)
    options = {"eta": 0.1, **EXAMPLE}
    positive_rows, bonus = dual_mode_advantages(REWARDS, LOGPROBS, MASK, share_correction="positive", **options)
    close(bonus, rows(ZERO, [-0.025, 0.025, 0.05, 0.025, -0.025]))  # before the correction
    close(positive_rows, rows([-0.5 * e4, -0.5, 1.5, -0.5, -0.5], [-0.525, -0.475, 1.55, -0.475, -0.525 * e4]))
    options |= {"share_correction": "shaped", "share_gamma": 0.5}
    shaped_rows, _ = dual_mode_advantages(REWARDS, LOGPROBS, MASK, **options)
    w2, w4 = e2 / (e2 + 0.5), e4 / (e4 + 0.5)
    normal = [-0.5 * w4, -0.5 / (1 + 0.5 * e2), 1.5 * w2, -0.5, -0.5]
    close(shaped_rows, rows(normal, [-0.525, -0.475, 1.55, -0.475 / 1.5, -0.525 * w4]))


@pytest.mark.parametrize("form", FORMS)
def test_nothing_overflows(form):
    """Tokens that one mode is sure of and the other would never write."""
    logprobs = torch.where(torch.arange(8)[:, None] < 4, 0.0, -200.0).expand(8, 3).contiguous()
    logprobs[4], logprobs[0] = 0.0, -200.0
    rewards = torch.tensor([1.0, 0.0] * 4)
    sizes = {"num_prompts": 1, "num_generations": 2}
    advantages, _ = dual_mode_advantages(rewards, logprobs, torch.ones(8, 3), share_correction=form, **sizes)
    assert torch.isfinite(advantages).all()
    assert advantages.abs().max() < 2


def test_wrong_forms_are_named():
    sizes = {"num_prompts": 1, "num_generations": 2}
    arguments = (torch.zeros(8), torch.zeros(8, 1), torch.ones(8, 1))
    with pytest.raises(ValueError, match="one of 'none', 'truncated', 'positive', 'shaped', got 'luffy'"):
        dual_mode_advantages(*arguments, share_correction="luffy", **sizes)
    with pytest.raises(ValueError, match="share_gamma must be a finite number above 0, got 0"):
        dual_mode_advantages(*arguments, share_gamma=0, **sizes)
