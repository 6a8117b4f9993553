"""Advantages: literal numbers worked by hand, a slow oracle in plain Python, bad input."""

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from worked_example import EXAMPLE, LOGPROBS, MASK, REWARDS, ZERO, close, rows

from policy_split.algorithms import advantages as module
from policy_split.algorithms.advantages import bonus_statistics, dual_mode_advantages

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


@dataclass
class Batch:
    rewards: Tensor
    logprobs: Tensor
    mask: Tensor
    surprise: Tensor | None
    sizes: dict[str, int]


PROMPT, RESPONSE = "NHNH", "NHHN"  # modes of the four blocks


def batch(prompts: int, n: int, length: int, seed: int, *, surprise: bool, garbage: float = 0.0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    size = (4, prompts * n, length)
    own = torch.rand(size[1:], generator=g) < 0.7, torch.rand(size[1:], generator=g) < 0.7
    mask = torch.stack([own["NH".index(r)] for r in RESPONSE]).flatten(0, 1)
    rewards = torch.randint(0, 2, (4 * prompts * n,), generator=g).double()
    nats = torch.randint(0, 33, (2, *size), generator=g).double().flatten(1, 2) / 8  # a grid: no near ties at quantiles
    nats = torch.where(mask, nats, garbage)
    sizes = {"num_prompts": prompts, "num_generations": n}
    return Batch(rewards, -nats[0], mask, nats[1] if surprise else None, sizes)


def oracle_quantile(values: list[float], ratio: float) -> float:
    values, position = sorted(values), ratio * (len(values) - 1)
    low, high, weight = values[math.floor(position)], values[math.ceil(position)], position - math.floor(position)
    return low + weight * (high - low)


def oracle_normalise(values: list[float], how: str) -> list[float]:
    if how == "none":
        return values
    if len(set(values)) <= 1:
        return [0.0] * len(values)
    mean = math.fsum(values) / len(values)
    std = math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (len(values) - 1))
    scale = std if how == "zscore" else max(values) - min(values)
    return [(x - mean) / (scale + 1e-6) for x in values]


def oracle(
    x: Batch, *, alpha, eta, eta_normal, kappa, clamp, clamp_floor, share_correction, normalize, ratio, correctness_mask
) -> tuple[Tensor, Tensor]:
    """The definition, one token at a time."""
    prompts, n = x.sizes["num_prompts"], x.sizes["num_generations"]
    advantages, bonus = torch.zeros_like(x.logprobs), torch.zeros_like(x.logprobs)

    def block_row(prompt: str, response: str, question: int, i: int) -> int:
        return list(zip(PROMPT, RESPONSE, strict=True)).index((prompt, response)) * prompts * n + question * n + i

    for mode, question in itertools.product("NH", range(prompts)):
        other = "NH".replace(mode, "")
        places = [(r, i) for r in "NH" for i in range(n)]
        group = {p: block_row(mode, p[0], question, p[1]) for p in places}
        twin = {p: block_row(other, p[0], question, p[1]) for p in places}
        correctness = oracle_normalise([x.rewards[group[p]].item() for p in places], "zscore")
        tokens = [(k, t) for k, p in enumerate(places) for t in range(x.mask.shape[1]) if x.mask[group[p], t]]
        surprise = -x.logprobs if x.surprise is None else x.surprise
        b = [
            alpha * surprise[group[places[k]], t].item() + (1 - alpha) * surprise[twin[places[k]], t].item()
            for k, t in tokens
        ]
        same = len({x.rewards[row].item() for row in group.values()}) == 1
        for (k, t), raw, value in zip(tokens, b, oracle_normalise(b, normalize), strict=True):
            row, a = group[places[k]], correctness[k]
            if raw < oracle_quantile(b, ratio) or (correctness_mask == "all_same" and not same):
                value = 0.0
            scale = eta if mode == "H" else -eta_normal
            bound = math.inf if kappa is None else max(abs(a), clamp_floor) / kappa
            if clamp == "paper":
                bonus[row, t] = scale * max(-bound, min(bound, value))
            else:
                bonus[row, t] = max(-bound, min(bound, scale * value))
            weight = 1.0
            if share_correction == "truncated" and places[k][0] != mode:
                weight = min(1.0, math.exp(x.logprobs[row, t].item() - x.logprobs[twin[places[k]], t].item()))
            advantages[row, t] = weight * (a + bonus[row, t].item())
    return advantages, bonus


OPTION_VALUES = {
    "alpha": [0.0, 0.25, 0.5, 1.0],
    "eta": [0.0, 0.03, 0.3, 1.0],
    "eta_normal": [0.0, 0.1, -0.2],
    "kappa": [None, 0.5, 2.0],
    "clamp": ["paper", "code"],
    "clamp_floor": [0.0, 0.7],
    "share_correction": ["none", "truncated"],
    "normalize": ["zscore", "mean", "none"],
    "lowest_entropy_mask_ratio": [0.0, 0.3, 0.5, 0.99],
    "correctness_mask": ["none", "all_same"],
}
options_strategy = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in OPTION_VALUES.items()})
sizes_strategy = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(0, 4))


@settings(max_examples=250, deadline=None)
@given(sizes_strategy, st.integers(0, 10**6), st.booleans(), options_strategy)
def test_against_the_oracle(sizes: tuple[int, int, int], seed: int, surprise: bool, options: dict) -> None:
    x = batch(*sizes, seed, surprise=surprise)
    actual = dual_mode_advantages(x.rewards, x.logprobs, x.mask, surprise=x.surprise, **x.sizes, **options)
    ratio = options.pop("lowest_entropy_mask_ratio")
    for got, expected in zip(actual, oracle(x, ratio=ratio, **options), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-8, rtol=1e-8)


ALL_ON = {
    "eta": 0.3, "eta_normal": 0.1, "kappa": 2.0, "clamp": "code", "clamp_floor": 0.1, "share_correction": "truncated",
    "lowest_entropy_mask_ratio": 0.2,
}  # fmt: skip


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e38])
@pytest.mark.parametrize("normalize", ["zscore", "mean", "none"])
def test_masked_places_do_not_leak(garbage: float, normalize: str) -> None:
    clean, dirty = (batch(3, 2, 5, 7, surprise=True, garbage=value) for value in (0.0, garbage))
    assert not clean.mask.all()
    results = [
        dual_mode_advantages(
            x.rewards, x.logprobs, x.mask, surprise=x.surprise, normalize=normalize, **x.sizes, **ALL_ON
        )
        for x in (clean, dirty)
    ]
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a[~clean.mask], torch.zeros_like(a[~clean.mask]))


def test_permuted_questions_and_responses() -> None:
    """Neither questions nor the responses of one mode to a question (two blocks at once) have an order."""
    x = batch(4, 3, 5, 11, surprise=True)

    def run(order: Tensor) -> tuple[Tensor, Tensor]:
        tensors = (x.rewards[order], x.logprobs[order], x.mask[order])
        return dual_mode_advantages(*tensors, surprise=x.surprise[order], **x.sizes, **ALL_ON)

    index = torch.arange(48).view(4, 4, 3)
    questions = index[:, [2, 0, 3, 1]].flatten()
    responses = index.clone()
    responses[[0, 3], 1] = responses[[0, 3], 1][:, [2, 0, 1]]
    plain = run(index.flatten())
    for got, expected in zip(run(questions), plain, strict=True):
        torch.testing.assert_close(got, expected[questions], atol=1e-12, rtol=1e-12)
    for got, expected in zip(run(responses.flatten()), plain, strict=True):
        torch.testing.assert_close(got, expected[responses.flatten()], atol=1e-12, rtol=1e-12)


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


def test_quantile_of_groups() -> None:
    """Against torch.quantile, group by group."""
    x = batch(3, 4, 6, 3, surprise=True)
    b, valid = x.surprise.view(2, 2, 3, 4, 6), x.mask.view(2, 2, 3, 4, 6)
    for ratio in (0.0, 0.1, 0.37, 0.5, 0.999):
        actual = module.group_quantile(b, valid, ratio)
        assert actual.shape == (1, 2, 3, 1, 1)
        for mode, question in itertools.product(range(2), range(3)):
            group = b[:, mode, question][valid[:, mode, question]]
            torch.testing.assert_close(actual[0, mode, question, 0, 0], torch.quantile(group, ratio))


def test_quantile_of_many_tokens() -> None:
    """0 ... 99,999 in one group: the position 0.37 * 99,999 = 36,999.63 has no room for its fraction in fp32."""
    b = torch.arange(100_000.0, dtype=torch.float64).view(2, 1, 1, 1, -1).repeat(1, 2, 1, 1, 1)
    actual = module.group_quantile(b, torch.ones_like(b, dtype=torch.bool), 0.37)
    torch.testing.assert_close(actual.flatten(), torch.full((2,), 36_999.63, dtype=torch.float64), atol=1e-9, rtol=0)


BAD_OPTIONS = [
    ("num_prompts", 0, ValueError, "num_prompts must be an integer of at least 1, got 0"),
    ("num_prompts", 1.0, TypeError, "num_prompts"),
    ("num_prompts", True, TypeError, "num_prompts"),
    ("num_generations", 0, ValueError, "num_generations must be an integer of at least 1, got 0"),
    ("num_generations", -2, ValueError, "num_generations"),
    ("num_generations", "2", TypeError, "num_generations"),
    ("alpha", -0.1, ValueError, r"alpha must be a number in \[0, 1\], got -0.1"),
    ("alpha", 1.5, ValueError, "alpha"),
    ("alpha", math.nan, ValueError, "alpha"),
    ("alpha", None, TypeError, "alpha"),
    ("alpha", torch.tensor(0.5), TypeError, "alpha"),
    ("eta", -0.03, ValueError, "eta must be a finite number of at least 0, got -0.03"),
    ("eta", math.inf, ValueError, "eta"),
    ("eta_normal", math.nan, ValueError, "eta_normal must be a finite number, got nan"),
    ("eta_normal", -math.inf, ValueError, "eta_normal"),
    ("kappa", 0, ValueError, "kappa must be a finite number above 0, or None for no clamp, got 0"),
    ("kappa", -2.0, ValueError, "kappa"),
    ("kappa", math.inf, ValueError, "kappa"),
    ("kappa", "2", TypeError, "kappa"),
    ("clamp", "Paper", ValueError, "clamp must be 'paper' or 'code', got 'Paper'"),
    ("clamp", None, TypeError, "clamp"),
    ("clamp_floor", -1.0, ValueError, "clamp_floor must be a finite number of at least 0, got -1.0"),
    ("clamp_floor", math.nan, ValueError, "clamp_floor"),
    ("share_correction", "clipped", ValueError, "share_correction must be 'none' or 'truncated', got 'clipped'"),
    ("normalize", "z", ValueError, "normalize must be 'zscore', 'mean' or 'none', got 'z'"),
    ("normalize", None, TypeError, "normalize"),
    ("lowest_entropy_mask_ratio", 1.0, ValueError, r"lowest_entropy_mask_ratio must be a number in \[0, 1\), got 1.0"),
    ("lowest_entropy_mask_ratio", -0.1, ValueError, "lowest_entropy_mask_ratio"),
    ("correctness_mask", "all", ValueError, "correctness_mask must be 'none' or 'all_same', got 'all'"),
]


@pytest.mark.parametrize(("name", "value", "error", "message"), BAD_OPTIONS)
@pytest.mark.parametrize("function", [dual_mode_advantages, bonus_statistics])
def test_bad_options(function, name: str, value: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        function(REWARDS, LOGPROBS, MASK, **{**EXAMPLE, name: value})


def poked(x: Tensor, index: tuple[int, ...], value: float) -> Tensor:
    x = x.clone()
    x[index] = value
    return x


BAD_TENSORS = [
    ({"rewards": REWARDS[:7]}, ValueError, r"rewards has shape \(7,\), expected \(8,\) for 1 prompts, 2 generations"),
    ({"rewards": REWARDS[:, None]}, ValueError, r"rewards has shape \(8, 1\), expected \(8,\)"),
    ({"logprobs": LOGPROBS[:4]}, ValueError, r"logprobs has shape \(4, 2\), expected \(8, 2\)"),
    ({"logprobs": LOGPROBS[:, 0]}, ValueError, r"logprobs has shape \(8,\), expected \(8, 'T'\)"),
    ({"logprobs": LOGPROBS[..., None]}, ValueError, r"logprobs has shape \(8, 2, 1\), expected \(8, 'T'\)"),
    ({"mask": MASK[:, :1]}, ValueError, r"mask has shape \(8, 1\), expected \(8, 2\)"),
    ({"mask": MASK[:1]}, ValueError, r"mask has shape \(1, 2\), expected \(8, 2\)"),
    ({"surprise": LOGPROBS[:, :1]}, ValueError, r"surprise has shape \(8, 1\), expected \(8, 2\)"),
    ({"num_prompts": 2}, ValueError, r"logprobs has shape \(8, 2\), expected \(16, 2\) for 2 prompts, 2 generations"),
    ({"rewards": REWARDS.tolist()}, TypeError, "rewards must be a .*tensor, got list"),
    ({"logprobs": None}, TypeError, "logprobs must be a .*tensor, got NoneType"),
    ({"logprobs": MASK.long()}, TypeError, "logprobs must be a .*floating.* tensor, got torch.int64"),
    ({"surprise": MASK.long()}, TypeError, "surprise must be a .*floating.* tensor, got torch.int64"),
    ({"mask": None}, TypeError, "mask must be a .*tensor, got NoneType"),
    ({"rewards": poked(REWARDS, (5,), math.nan)}, ValueError, r"rewards\[5\] is nan, expected a finite number"),
    ({"rewards": poked(REWARDS, (0,), -math.inf)}, ValueError, r"rewards\[0\] is -inf"),
    ({"logprobs": poked(LOGPROBS, (2, 1), -math.inf)}, ValueError, r"logprobs\[2, 1\] is -inf"),
    ({"logprobs": poked(LOGPROBS, (7, 0), math.nan)}, ValueError, r"logprobs\[7, 0\] is nan"),
    ({"surprise": poked(LOGPROBS, (4, 1), math.inf)}, ValueError, r"surprise\[4, 1\] is inf"),
    ({"mask": poked(MASK, (5, 0), 0)}, ValueError, r"mask\[3\] differs from that of the same response"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD_TENSORS)
def test_bad_tensors(change: dict, error: type[Exception], message: str) -> None:
    arguments = {"rewards": REWARDS, "logprobs": LOGPROBS, "mask": MASK, **EXAMPLE, **change}
    with pytest.raises(error, match=message):
        dual_mode_advantages(**arguments)
