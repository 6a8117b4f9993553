"""Advantages: literal numbers worked by hand, and groups that are empty, equal, dead or hold NaN."""

import itertools
import math

import pytest
import torch
from random_batches import ALL_ON, batch
from torch import Tensor
from worked_example import EXAMPLE, LOGPROBS, MASK, REWARDS, ZERO, close, rows

from policy_split.algorithms import advantages as module
from policy_split.algorithms.advantages import advantages_and_bonuses, bonus_statistics, dual_mode_advantages

CORRECTNESS = [-0.5, -0.5, 1.5, -0.5, -0.5]
E2, E4 = 0.1353352832366127, 0.01831563888873418  # exp(-2), exp(-4)
LITERALS = [
    # eta * clip(B, -bound, bound)
    ({"eta": 0.1}, ZERO, [-0.025, 0.025, 0.05, 0.025, -0.025]),
    ({"eta": 0.3}, ZERO, [-0.075, 0.075, 0.15, 0.075, -0.075]),
    ({"eta": 0.1, "kappa": 4.0}, ZERO, [-0.0125, 0.0125, 0.0375, 0.0125, -0.0125]),
    # clip(eta * B): 0.3 * B = -.45 .3 .15 .15 -.15
    ({"eta": 0.3, "clamp": "code"}, ZERO, [-0.25, 0.25, 0.15, 0.15, -0.15]),
    ({"eta": 0.3, "kappa": None}, ZERO, [-0.45, 0.3, 0.15, 0.15, -0.15]),
    ({"eta": 0.3, "kappa": None, "clamp": "code"}, ZERO, [-0.45, 0.3, 0.15, 0.15, -0.15]),
    # floor 1: bounds .5 .5 .75 .5 .5
    ({"eta": 0.1, "clamp_floor": 1.0}, ZERO, [-0.05, 0.05, 0.05, 0.05, -0.05]),
    ({"eta": 0.4, "clamp_floor": 1.0, "clamp": "code"}, ZERO, [-0.5, 0.4, 0.2, 0.2, -0.2]),
    # the normal mode subtracts: -0.2 * clip(B_N), clip(B_N) = -.25 .25 .75 .25 -.25;  -0.2 * B_N = .1 -.1 -.2 -.1 .3
    ({"eta": 0.0, "eta_normal": 0.2}, [0.05, -0.05, -0.15, -0.05, 0.05], ZERO),
    ({"eta": 0.0, "eta_normal": -0.2}, [-0.05, 0.05, 0.15, 0.05, -0.05], ZERO),
    ({"eta": 0.0, "eta_normal": 0.2, "clamp": "code"}, [0.1, -0.1, -0.2, -0.1, 0.25], ZERO),
    # (b - mean) / (6 - 1): B_H = -.6 .4 .2 .2 -.2, B_N = -.2 .2 .4 .2 -.6
    (
        {"eta": 0.5, "eta_normal": 0.5, "kappa": None, "normalize": "mean"},
        [0.1, -0.1, -0.2, -0.1, 0.3],
        [-0.3, 0.2, 0.1, 0.1, -0.1],
    ),
    # b itself
    ({"eta": 0.1, "kappa": None, "normalize": "none"}, ZERO, [0.1, 0.6, 0.5, 0.5, 0.3]),
    # b_H sorted 1 3 5 5 6: quantile .5 is 5 (>= keeps both 5s), .4 is 3 + .6 * 2 = 4.2, .25 is 3, .8 is 5.2
    ({"eta": 0.3, "kappa": None, "lowest_entropy_mask_ratio": 0.5}, ZERO, [0, 0.3, 0.15, 0.15, 0]),
    ({"eta": 0.3, "kappa": None, "lowest_entropy_mask_ratio": 0.4}, ZERO, [0, 0.3, 0.15, 0.15, 0]),
    ({"eta": 0.3, "kappa": None, "lowest_entropy_mask_ratio": 0.25}, ZERO, [0, 0.3, 0.15, 0.15, -0.15]),
    ({"eta": 0.3, "kappa": None, "lowest_entropy_mask_ratio": 0.8}, ZERO, [0, 0.3, 0, 0, 0]),
    # the rewards differ
    ({"eta": 0.3, "kappa": None, "correctness_mask": "all_same"}, ZERO, ZERO),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("options", "normal", "high"), LITERALS)
def test_literal_bonus(options: dict, normal: list[float], high: list[float], dtype: torch.dtype) -> None:
    advantages, bonus = dual_mode_advantages(REWARDS, LOGPROBS.to(dtype), MASK, **EXAMPLE, **options)
    assert advantages.dtype == bonus.dtype == dtype
    close(bonus, rows(normal, high))
    close(advantages, rows(CORRECTNESS, CORRECTNESS) + rows(normal, high))


def test_defaults_are_the_papers() -> None:
    """b = (s_N + s_H) / 2 = 2 5.5 5.5 5 2 in both modes, mean 4, sum of squared deviations 13.5: every |B| is above its
    bound, also d's, 1.5 / sqrt(13.5 / 4) = .816 > .75."""
    bonus = dual_mode_advantages(REWARDS, LOGPROBS, MASK, num_prompts=1, num_generations=2)[1]
    close(bonus, rows(ZERO, [-0.0075, 0.0075, 0.0225, 0.0075, -0.0075]))


EQUAL_REWARDS = [  # A = 0: the bound is floor / 2
    ({}, ZERO),
    ({"clamp": "code"}, ZERO),
    ({"clamp_floor": 1.0}, [-0.15, 0.15, 0.15, 0.15, -0.15]),
    ({"clamp_floor": 0.5, "clamp": "code"}, [-0.25, 0.25, 0.15, 0.15, -0.15]),
    ({"kappa": None}, [-0.45, 0.3, 0.15, 0.15, -0.15]),
]


@pytest.mark.parametrize("correctness_mask", ["none", "all_same"])
@pytest.mark.parametrize(("options", "high"), EQUAL_REWARDS)
def test_literal_equal_rewards(options: dict, high: list[float], correctness_mask: str) -> None:
    options = {"eta": 0.3, "correctness_mask": correctness_mask, **EXAMPLE, **options}
    advantages, bonus = dual_mode_advantages(torch.full((8,), 0.1), LOGPROBS, MASK, **options)
    close(bonus, rows(ZERO, high))
    assert torch.equal(advantages, bonus)


def test_literal_share_correction() -> None:
    """c, d under N: min(1, exp(s_H - s_N)) = e^-4, 1 (of e^2), e^-2; a, b under H: min(1, exp(s_N - s_H)) = 1, e^-4."""
    options = {"eta": 0.1, "share_correction": "truncated", **EXAMPLE}
    advantages, bonus = dual_mode_advantages(REWARDS, LOGPROBS, MASK, **options)
    close(bonus, rows(ZERO, [-0.025, 0.025, 0.05, 0.025, -0.025]))  # before the correction
    normal = [-0.5 * E4, -0.5, 1.5 * E2, -0.5, -0.5]
    close(advantages, rows(normal, [-0.525, -0.475, 1.55, -0.475, -0.525 * E4]))


def test_literal_surprise() -> None:
    """The surprise serves the bonus, the log-probs the share correction."""
    logprobs = rows([-2] * 5, [-6] * 5, fill=math.nan)  # under N: exp(-2 + 6) -> 1; under H: exp(-6 + 2) = e^-4
    options = {"eta": 0.1, "share_correction": "truncated", "surprise": -LOGPROBS, **EXAMPLE}
    advantages, bonus = dual_mode_advantages(REWARDS, logprobs, MASK, **options)
    close(bonus, rows(ZERO, [-0.025, 0.025, 0.05, 0.025, -0.025]))
    close(advantages, rows(CORRECTNESS, [-0.525, -0.475, 1.55, -0.475 * E4, -0.525 * E4]))


def test_literal_epsilon() -> None:
    """Everything times 1e-6: std 2e-6 + 1e-6 = 3e-6, range 5e-6 + 1e-6 = 6e-6."""
    tiny = {"eta": 1.0, "kappa": None, **EXAMPLE}
    advantages, bonus = dual_mode_advantages(REWARDS * 1e-6, LOGPROBS * 1e-6, MASK, **tiny)
    third = 1 / 3
    close(bonus, rows(ZERO, [-1, 2 * third, third, third, -third]))
    close(advantages - bonus, rows([-third, -third, 1, -third, -third], [-third, -third, 1, -third, -third]))
    bonus = dual_mode_advantages(REWARDS, LOGPROBS * 1e-6, MASK, normalize="mean", **tiny)[1]
    close(bonus, rows(ZERO, [-0.5, third, third / 2, third / 2, -third / 2]))


def two_questions(x: Tensor, y: Tensor) -> Tensor:
    return torch.cat((x.view(4, 2, *x.shape[1:]), y.view(4, 2, *y.shape[1:])), 1).flatten(0, 1)


# Question 0: the paper's form clamps all but d (.5 < .75), the code's only c0 and c1. Question 1 is dead: all.
STATISTICS = [
    ({"eta": 0.3}, 4 / 5, 9 / 10),
    ({"eta": 0.3, "clamp": "code"}, 2 / 5, 7 / 10),
    ({"eta": 0.3, "kappa": None}, 0, 0),
    ({"eta": 0.0}, 0, 0),
    ({"eta": 0.0, "eta_normal": 0.2, "clamp": "code"}, 1 / 5, 6 / 10),
    ({"eta": 0.3, "clamp": "code", "clamp_floor": 2.0}, 0, 0),
    ({"eta": 0.3, "lowest_entropy_mask_ratio": 0.5}, 2 / 3, 5 / 6),
]


@pytest.mark.parametrize(("options", "one", "two"), STATISTICS)
def test_literal_statistics(options: dict, one: float, two: float) -> None:
    clamped, dead = bonus_statistics(REWARDS, LOGPROBS, MASK, **EXAMPLE, **options)
    assert (clamped.item(), dead.item()) == (pytest.approx(one), 0.0)
    options = {**EXAMPLE, "num_prompts": 2, **options}
    rewards, mask = two_questions(REWARDS, torch.full((8,), 0.1)), two_questions(MASK, MASK)
    clamped, dead = bonus_statistics(rewards, two_questions(LOGPROBS, LOGPROBS), mask, **options)
    assert (clamped.item(), dead.item()) == (pytest.approx(two), 0.5)


@pytest.mark.parametrize("options", [options for options, _, _ in STATISTICS] + [{"rollout_sharing": False}])
def test_the_bonus_without_its_clamp_comes_with_the_others(options: dict) -> None:
    found = advantages_and_bonuses(REWARDS, LOGPROBS, MASK, **EXAMPLE, **options)
    clamped = dual_mode_advantages(REWARDS, LOGPROBS, MASK, **EXAMPLE, **options)
    free = dual_mode_advantages(REWARDS, LOGPROBS, MASK, **EXAMPLE, **options | {"kappa": None})[1]
    assert all(map(torch.equal, found, (*clamped, free)))


@pytest.mark.parametrize("normalize", ["zscore", "mean"])
def test_groups_of_no_or_one_token_or_of_equal_ones(normalize: str) -> None:
    """n = 1, questions with 0 tokens, 1 token, and 2 of 7 tokens of surprise 0.1 (the fp32 mean of 14 is not 0.1)."""
    mask = torch.zeros(4, 3, 7, dtype=torch.bool)
    mask[[0, 3], 1, 0] = True
    mask[:, 2] = True
    rewards = torch.tensor([1.0, 0, 0, 1]).repeat_interleave(3)
    options = {"num_prompts": 3, "num_generations": 1, "kappa": None, "eta": 1.0, "eta_normal": 1.0}
    options |= {"normalize": normalize, "lowest_entropy_mask_ratio": 0.5}
    logprobs = torch.where(mask.flatten(0, 1), -0.1, math.nan)
    advantages, bonus = dual_mode_advantages(rewards, logprobs, mask.flatten(0, 1), **options)
    assert torch.equal(bonus, torch.zeros(12, 7))
    a = 0.5**0.5  # rewards 1, 0: deviation .5, std sqrt(.5)
    expected = torch.tensor([a, -a, -a, a])[:, None, None] * mask
    close(advantages, expected.flatten(0, 1))


def test_a_single_token_keeps_its_raw_preference() -> None:
    options = {"num_prompts": 1, "num_generations": 1, "kappa": None, "eta": 1.0, "normalize": "none"}
    mask = torch.tensor([[1], [0], [0], [1]])
    bonus = dual_mode_advantages(torch.zeros(4), torch.tensor([[-1.0], [9], [9], [-4]]), mask, **options)[1]
    assert bonus.tolist() == [[0.0], [0.0], [0.0], [2.5]]


@pytest.mark.parametrize("n", [3, 5, 7])
def test_equal_rewards_give_an_exact_zero(n: int) -> None:
    """A residue of 7e-9, the rounding of a mean of 0.1s, over 1e-6 would be an advantage."""
    advantages, _ = dual_mode_advantages(
        torch.full((4 * n,), 0.1), torch.zeros(4 * n, 1), torch.ones(4 * n, 1), num_prompts=1, num_generations=n
    )
    assert torch.equal(advantages, torch.zeros(4 * n, 1))


@pytest.mark.parametrize("normalize", ["zscore", "mean"])
def test_a_constant_surprise_changes_nothing(normalize: str) -> None:
    """b - 10 < 0 everywhere: a masked place that counted as 0 would be the maximum."""
    results = [
        dual_mode_advantages(
            REWARDS, LOGPROBS, MASK, surprise=-LOGPROBS + shift, normalize=normalize, kappa=None, eta=1.0, **EXAMPLE
        )
        for shift in (0.0, -10.0)
    ]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


def test_empty_responses() -> None:
    x = batch(2, 2, 0, 1, surprise=False)
    for result in dual_mode_advantages(x.rewards, x.logprobs, x.mask, **x.sizes, **ALL_ON):
        assert result.shape == (16, 0)
    assert bonus_statistics(x.rewards, x.logprobs, x.mask, **x.sizes, **ALL_ON).clamped_fraction == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.int64, torch.float32])
@pytest.mark.parametrize("reward_dtype", [torch.int64, torch.bool, torch.float32, torch.float64])
def test_dtypes(dtype: torch.dtype, mask_dtype: torch.dtype, reward_dtype: torch.dtype) -> None:
    """The numbers of the example are exact in every dtype (rewards 0 and 1 give the same advantages)."""
    rewards = (REWARDS / 4).to(reward_dtype)
    advantages, bonus = dual_mode_advantages(rewards, LOGPROBS.to(dtype), MASK.to(mask_dtype), eta=0.1, **EXAMPLE)
    assert advantages.dtype == bonus.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(
        bonus, rows(ZERO, [-0.025, 0.025, 0.05, 0.025, -0.025]).to(bonus.dtype), atol=1e-5, rtol=1e-5
    )


def test_detached_strided_and_pure() -> None:
    x = batch(2, 3, 4, 5, surprise=True)
    expected = dual_mode_advantages(x.rewards, x.logprobs, x.mask, surprise=x.surprise, **x.sizes, **ALL_ON)
    tensors = [t.repeat_interleave(2, -1)[..., ::2] for t in (x.logprobs, x.mask, x.surprise)]
    logprobs, mask, surprise = [t.t().contiguous().t() for t in tensors]
    logprobs.requires_grad_()
    surprise.requires_grad_()
    rewards = x.rewards.clone().requires_grad_()
    actual = dual_mode_advantages(rewards, logprobs, mask, surprise=surprise, **x.sizes, **ALL_ON)
    for got, want in zip(actual, expected, strict=True):
        assert not got.requires_grad
        assert not want.requires_grad
        torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-12)  # strides change the order of the sums
    assert torch.equal(logprobs, x.logprobs)
    assert torch.equal(surprise, x.surprise)
    assert torch.equal(rewards, x.rewards)


def test_no_host_synchronisation() -> None:
    """A meta tensor has no values: whatever asks for one, as a GPU would have to synchronise for, raises."""
    x = batch(2, 3, 4, 5, surprise=True)
    logprobs, mask, surprise = (t.to("meta") for t in (x.logprobs, x.mask, x.surprise))
    for normalize, correctness_mask in itertools.product(["zscore", "mean", "none"], ["none", "all_same"]):
        options = {
            "surprise": surprise,
            "normalize": normalize,
            "correctness_mask": correctness_mask,
            **x.sizes,
            **ALL_ON,
        }
        advantages, bonus = dual_mode_advantages(x.rewards, logprobs, mask, **options)
        assert advantages.shape == bonus.shape == (24, 4)
        assert advantages.device.type == "meta"
        assert bonus_statistics(x.rewards, logprobs, mask, **options).dead_fraction.device.type == "meta"


@pytest.mark.parametrize("normalize", ["zscore", "mean"])
def test_nan_goes_through_its_group(normalize: str) -> None:
    """What a CPU refuses and a GPU cannot look at: a NaN preference makes its (question, mode) group NaN, no other."""
    b = torch.rand(2, 2, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    b[1, 0, 2, 1, 3] = math.nan  # mode N of question 2
    is_nan = module.standardise(b, torch.ones_like(b, dtype=torch.bool), normalize).isnan()
    expected = torch.zeros_like(is_nan)
    expected[:, 0, 2] = True
    assert torch.equal(is_nan, expected)
