"""Advantages against a slow oracle in plain Python, and what they must not depend on."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_batches import ALL_ON, PROMPT, RESPONSE, Batch, batch
from torch import Tensor

from policy_split.algorithms import advantages as module
from policy_split.algorithms.advantages import dual_mode_advantages


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
    x: Batch,
    *,
    alpha,
    eta,
    eta_normal,
    kappa,
    clamp,
    clamp_floor,
    share_correction,
    share_gamma,
    normalize,
    ratio,
    correctness_mask,
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
            if share_correction != "none" and places[k][0] != mode:
                likelier = math.exp(x.logprobs[row, t].item() - x.logprobs[twin[places[k]], t].item())
                if share_correction == "shaped":
                    weight = likelier / (likelier + share_gamma)
                elif share_correction == "truncated" or a <= 0:
                    weight = min(1.0, likelier)
            advantages[row, t] = weight * (a + bonus[row, t].item())
    return advantages, bonus


OPTION_VALUES = {
    "alpha": [0.0, 0.25, 0.5, 1.0],
    "eta": [0.0, 0.03, 0.3, 1.0],
    "eta_normal": [0.0, 0.1, -0.2],
    "kappa": [None, 0.5, 2.0],
    "clamp": ["paper", "code"],
    "clamp_floor": [0.0, 0.7],
    "share_correction": ["none", "truncated", "positive", "shaped"],
    "share_gamma": [0.1, 2.0],
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
