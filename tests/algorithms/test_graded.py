"""Responses without a reward: left out of their groups, as if they had never been drawn."""

import pytest
import torch

from policy_split.algorithms.advantages import bonus_statistics, dual_mode_advantages
from policy_split.algorithms.baselines import dynamic_sampling_mask, grpo_advantages, pass_at_k_advantages
from policy_split.algorithms.table import ALGORITHMS, Samples, training_tokens

P, N, T = 2, 3, 4
nan = float("nan")
OPTIONS = [
    {},
    {"clamp": "code", "eta": 0.3, "eta_normal": 0.1, "share_correction": "truncated"},
    {"kappa": None, "normalize": "mean", "lowest_entropy_mask_ratio": 0.4},
    {"kappa": None, "normalize": "none", "correctness_mask": "all_same"},
    {"rollout_sharing": False, "clamp_floor": 0.5},
]


def rows(n=N, *, seed=0):
    """(rewards, logprobs, mask) of P questions: the response in a place is the same under both prompts."""
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randint(0, 3, (2, P, n), generator=generator).double()
    lengths = torch.randint(1, T + 1, (2, P, n), generator=generator)
    logprobs = -torch.rand(2, 2, P, n, T, generator=generator, dtype=torch.float64)
    mask = torch.arange(T) < lengths[..., None]
    return (torch.cat((x, x.flip(0))) for x in (rewards, mask)), logprobs


def blocks(n=N, **more):
    (rewards, mask), logprobs = rows(n, **more)
    return rewards.flatten(), logprobs.flatten(0, 3), mask.flatten(0, 2)


@pytest.mark.parametrize("options", OPTIONS, ids=range(len(OPTIONS)))
@pytest.mark.parametrize("place", range(N))
def test_left_out_is_never_drawn(options, place):
    """The same response of every mode and question left out: what remains is what n - 1 responses have."""
    rewards, logprobs, mask = blocks()
    kept = torch.arange(N) != place
    graded = kept.expand(4, P, N).flatten()
    counts = {"num_prompts": P, "num_generations": N}
    holed = torch.where(graded, rewards, nan)
    advantages, bonus = dual_mode_advantages(holed, logprobs, mask, **counts, **options, graded=graded)
    fewer = [x.unflatten(0, (4, P, N))[:, :, kept].flatten(0, 2) for x in (rewards, logprobs, mask)]
    counts["num_generations"] = N - 1
    expected, expected_bonus = dual_mode_advantages(*fewer, **counts, **options)
    assert not advantages[~graded].any()
    assert not bonus[~graded].any()
    torch.testing.assert_close(advantages[graded], expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(bonus[graded], expected_bonus, rtol=1e-12, atol=1e-12)
    found = bonus_statistics(holed, logprobs, mask, num_prompts=P, num_generations=N, **options, graded=graded)
    torch.testing.assert_close(found, bonus_statistics(*fewer, **counts, **options), rtol=1e-12, atol=1e-12)


def test_literal():
    """Both groups have the normal mode's 1 and none, and the other mode's 2 and 2."""
    rewards = torch.tensor([1.0, nan, 2.0, 2.0, 2.0, 2.0, 1.0, nan])
    graded = ~rewards.isnan()
    logprobs, mask = torch.full((8, 1), -1.0), torch.ones(8, 1)
    advantages, _ = dual_mode_advantages(
        rewards, logprobs, mask, num_prompts=1, num_generations=2, eta=0.0, graded=graded
    )
    # mean 5/3, std sqrt(((2/3)^2 + 2 (1/3)^2) / 2) = 1 / sqrt(3)
    expected = torch.tensor([-2 / 3, 0.0, 1 / 3, 1 / 3, 1 / 3, 1 / 3, -2 / 3, 0.0]) / (3**-0.5 + 1e-6)
    torch.testing.assert_close(advantages[:, 0], expected)


@pytest.mark.parametrize("left", [0, 1])
def test_a_group_with_one_graded_response_or_none_is_dead(left):
    rewards, logprobs, mask = blocks()
    graded = torch.zeros(2, P, N, dtype=torch.bool)
    graded[:, 1] = True
    graded[0, 0, :left] = True
    graded = torch.cat((graded, graded.flip(0))).flatten()
    counts = {"num_prompts": P, "num_generations": N}
    advantages, _ = dual_mode_advantages(rewards, logprobs, mask, **counts, eta=0.5, graded=graded)
    assert not advantages.view(4, P, -1)[:, 0].any()
    assert advantages.view(4, P, -1)[:, 1].any()
    assert advantages.isfinite().all()
    assert bonus_statistics(rewards, logprobs, mask, **counts, graded=graded).dead_fraction == 0.5


def test_all_graded_is_as_if_nothing_was_said():
    rewards, logprobs, mask = blocks()
    counts = {"num_prompts": P, "num_generations": N}
    plain = dual_mode_advantages(rewards, logprobs, mask, **counts, eta=0.5)
    said = dual_mode_advantages(
        rewards, logprobs, mask, **counts, eta=0.5, graded=torch.ones(4 * P * N, dtype=torch.bool)
    )
    torch.testing.assert_close(said, plain, rtol=1e-12, atol=1e-12)


def test_bad_arguments():
    rewards, logprobs, mask = blocks()
    counts = {"num_prompts": P, "num_generations": N}
    graded = torch.ones(4 * P * N, dtype=torch.bool)
    with pytest.raises(TypeError, match=r"graded must be a bool tensor, got torch\.int64"):
        dual_mode_advantages(rewards, logprobs, mask, **counts, graded=graded.long())
    with pytest.raises(ValueError, match=r"graded has shape \(23,\), expected that of rewards, \(24,\)"):
        dual_mode_advantages(rewards, logprobs, mask, **counts, graded=graded[1:])
    graded[0] = False  # and not the same response under the other prompt
    with pytest.raises(ValueError, match=r"mask\[0\] differs from that of the same response under the other prompt"):
        dual_mode_advantages(rewards, logprobs, mask, **counts, graded=graded)
    with pytest.raises(ValueError, match=r"rewards\[3\] is nan, expected a finite number"):
        dual_mode_advantages(rewards.index_fill(0, torch.tensor([3]), nan), logprobs, mask, **counts)


def test_baselines_of_groups():
    rewards = torch.tensor(
        [[1.0, nan, 0.0, 1.0], [nan, nan, 1.0, 0.0], [nan, 1.0, nan, nan], [nan] * 4, [0.0, nan, 0, 0]]
    )
    graded = ~rewards.isnan()
    advantages = grpo_advantages(rewards, graded)
    for row, of in zip(advantages, graded, strict=True):
        assert not row[~of].any()
    torch.testing.assert_close(advantages[0, graded[0]], grpo_advantages(torch.tensor([[1.0, 0.0, 1.0]]))[0])
    torch.testing.assert_close(advantages[1, 2:], grpo_advantages(torch.tensor([[1.0, 0.0]]))[0])
    assert not advantages[2:].any()
    assert dynamic_sampling_mask(rewards, graded=graded).tolist() == [True, True, False, False, False]
    at_2 = pass_at_k_advantages(rewards, 2, graded=graded)
    torch.testing.assert_close(at_2[0, graded[0]], pass_at_k_advantages(torch.tensor([[1.0, 0.0, 1.0]]), 2)[0])
    assert not at_2[2:].any()  # too few, or none correct


@pytest.mark.parametrize("name", [name for name, algorithm in ALGORITHMS.items() if not algorithm.dual_mode])
def test_a_baseline_trains_on_what_is_graded(name):
    """Values without a meaning where nothing is graded: the results are finite, and nothing of them trains."""
    generator = torch.Generator().manual_seed(0)
    rewards = torch.tensor([[1.0, nan, 0.0, 1.0, 0.0], [nan, nan, 1.0, 0.0, 1.0]])
    graded = ~rewards.isnan()
    tokens = torch.rand(2, 10, 3, generator=generator)
    tokens[:, ~graded.flatten()] = nan
    samples = Samples(rewards, -tokens[0], tokens[1], torch.ones(10, 3), graded)
    algorithm = ALGORITHMS[name].with_settings(**({"k": 2} if name == "pass_at_k" else {}))
    found = training_tokens(algorithm, samples, torch.Generator().manual_seed(1))
    assert found.advantages.isfinite().all()
    assert not found.advantages[~graded.flatten()].any()
    assert not found.mask[~graded.flatten()].any()
    assert found.advantages.any()
