"""The table of algorithms: every name, what it changes in GRPO and nothing else, and numbers by hand."""

import math
from dataclasses import FrozenInstanceError

import pytest
import torch

from policy_split.algorithms.baseline_losses import clipped_loss
from policy_split.algorithms.baselines import AdaptiveEntropy, clip_cov_mask, entropy_advantage, grpo_advantages
from policy_split.algorithms.table import (
    ALGORITHMS,
    CHANGES,
    LossVectors,
    Samples,
    TrainingTokens,
    find_algorithm,
    token_loss,
    training_tokens,
)

# tokens on both sides of the clip range
RHO = torch.tensor([0.5, 0.5, 1.0, 1.0, 1.5, 1.5], dtype=torch.float64)
ADVANTAGES = torch.tensor([2.0, -2.0, 3.0, -3.0, 2.0, -2.0], dtype=torch.float64)
OLD = torch.tensor([-1.0, -2.0, -0.5, -3.0, -1.5, -2.5], dtype=torch.float64)
MARKS = torch.tensor([True, True, False, False, True, False])


def value_and_slope(loss_fn, logprobs, index):
    logprobs = logprobs.clone().requires_grad_()
    losses = loss_fn(logprobs, torch.zeros_like(logprobs), index)
    (slope,) = torch.autograd.grad(losses.sum(), logprobs)
    return losses.detach(), slope


NAMES = [
    "grpo", "clip_higher", "entropy_bonus", "adaptive_entropy", "entropy_advantage", "entropy_driven",
    "forking_tokens", "clip_cov", "kl_cov", "ce_gppo", "pass_at_k", "policy_split",
]  # fmt: skip
# two groups of three: one that differs, one of equal rewards; NaN behind the mask
SAMPLES = Samples(
    rewards=torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]),
    logprobs=torch.tensor([[-1.0, -2.0], [-0.5, math.nan], [-3.0, -4.0]]).repeat(2, 1),
    entropy=torch.tensor([[0.5, 1.0], [0.1, math.nan], [0.2, 0.7]]).repeat(2, 1),
    mask=torch.tensor([[1, 1], [1, 0], [1, 1]]).repeat(2, 1),
)
VALID = SAMPLES.mask != 0


def tokens_of(name, **options):
    algorithm = find_algorithm(name).with_settings(**options)
    return training_tokens(algorithm, SAMPLES, torch.Generator().manual_seed(0))


def test_every_name_is_in_the_table():
    assert list(ALGORITHMS) == NAMES
    for name, algorithm in ALGORITHMS.items():
        assert algorithm.name == name
        assert algorithm.paper.count(".") == 1
        assert len(algorithm.paper) == 10
        assert set(algorithm.changes) <= set(CHANGES)
        assert bool(algorithm.changes) == (name != "grpo")
        with pytest.raises(FrozenInstanceError):
            algorithm.name = "other"
    with pytest.raises(ValueError, match="algorithm='gspo' must be one of 'grpo', 'clip_higher'"):
        find_algorithm("gspo")


@pytest.mark.parametrize("name", NAMES[:-1])
def test_the_table_changes_what_it_says(name):
    plain, algorithm = tokens_of("grpo"), ALGORITHMS[name]
    tokens = tokens_of(name, **{x: 2 for x in algorithm.settings if x == "k"})  # groups of 3 have no 4
    assert tokens.advantages.shape == tokens.mask.shape == VALID.shape
    assert (tokens.advantages[~VALID] == 0).all()
    assert tokens.advantages.isfinite().all()
    assert (not tokens.advantages.equal(plain.advantages)) == ("advantages" in algorithm.changes)
    assert (not tokens.mask.equal(plain.mask)) == ("token mask" in algorithm.changes)
    assert not (tokens.mask & ~VALID).any()
    controlled = algorithm.entropy_control is not None or "entropy_coef" in algorithm.settings
    assert controlled == ("entropy coefficient" in algorithm.changes)
    # with every token treated apart, at ratios on both sides of the clip range
    vectors = LossVectors(ADVANTAGES, OLD, None if tokens.chosen is None else MARKS)
    at = (OLD + RHO.log(), torch.arange(6))
    clip_range = value_and_slope(token_loss(algorithm, vectors), *at)
    expected = value_and_slope(clipped_loss(ADVANTAGES, OLD), *at)
    differs = not all(torch.equal(x, y) for x, y in zip(clip_range, expected, strict=True))
    assert differs == bool({"loss", "clip range"} & set(algorithm.changes))


def test_training_tokens_literal():
    """A of 1 0 0: mean 1/3, std 1/sqrt 3: 2/sqrt 3 and -1/sqrt 3; the other group has none."""
    root = 1 / math.sqrt(3)
    plain = torch.tensor([[2 * root] * 2, [-root, 0], [-root] * 2, *[[0, 0]] * 3])
    tokens = tokens_of("grpo")
    torch.testing.assert_close(tokens, TrainingTokens(plain, VALID, None), rtol=0, atol=3e-6)
    assert tokens_of("clip_higher").mask.tolist() == [*VALID[:3].tolist(), *[[False, False]] * 3]
    # .4 H = .2 .4, .04, .08 .28: below half of |A|, .577 and .289
    bonus = torch.tensor([[0.2, 0.4], [0.04, 0], [0.08, 0.28], *[[0, 0]] * 3])
    torch.testing.assert_close(tokens_of("entropy_advantage").advantages, plain + bonus, rtol=0, atol=3e-6)
    # k = 2 of 3, c = 1: 1 - rho = 1/3, s = sqrt 2/3: A+ = 1/sqrt 2, A- = (1/3 - 1/2) / s = -1/(2 sqrt 2)
    best = tokens_of("pass_at_k", k=2).advantages
    torch.testing.assert_close(best[:, 0], torch.tensor([1, -0.5, -0.5, 0, 0, 0]) / math.sqrt(2))
    assert tokens_of("forking_tokens", ratio=0.2).mask.nonzero().tolist() == [[0, 1], [3, 1]]
    assert tokens_of("kl_cov", ratio=0.2).chosen.sum() == 2  # of 10 valid tokens
    assert tokens_of("clip_cov", low=-9.0, high=9.0, ratio=0.3).chosen.sum() == 3


def test_settings():
    changed = ALGORITHMS["clip_cov"].with_settings(ratio=0.5)
    assert changed.settings == {"ratio": 0.5, "low": 1.0, "high": 5.0}
    assert ALGORITHMS["clip_cov"].settings["ratio"] == 2e-4
    with pytest.raises(ValueError, match="algorithm 'clip_cov' has no setting eta; it has: ratio, low, high"):
        changed.with_settings(eta=1.0)
    with pytest.raises(ValueError, match="algorithm 'grpo' has no setting k; it has: none"):
        ALGORITHMS["grpo"].with_settings(k=1)
    control = ALGORITHMS["adaptive_entropy"].with_settings(target=0.3)
    made = control.entropy_control(control.settings)
    assert isinstance(made, AdaptiveEntropy)
    assert (made.target, made.delta, made.coefficient) == (0.3, 0.005, 0.0)
    assert ALGORITHMS["entropy_bonus"].settings["entropy_coef"] == 0.003


def test_the_own_clip_range_goes_first():
    vectors, at = LossVectors(ADVANTAGES, OLD), (OLD + RHO.log(), torch.arange(6))
    own = value_and_slope(token_loss(ALGORITHMS["clip_higher"], vectors, clip_low=0.4, clip_high=0.4), *at)[0]
    assert own[[1, 4]].tolist() == pytest.approx([1.6, -2.56])
    given = value_and_slope(token_loss(ALGORITHMS["grpo"], vectors, clip_low=0.4, clip_high=0.3), *at)[0]
    assert given[[1, 4]].tolist() == pytest.approx([1.2, -2.6])


def test_training_tokens_errors():
    with pytest.raises(ValueError, match="'policy_split' has two modes"):
        tokens_of("policy_split")
    short = SAMPLES._replace(rewards=SAMPLES.rewards[:1])
    with pytest.raises(ValueError, match=r"rewards has shape \(1, 3\), expected \(P, G\) with P\*G = 6 rows of mask"):
        training_tokens(ALGORITHMS["grpo"], short, torch.Generator())


def test_the_parts_are_the_functions():
    """What the table composes is what one would write by hand."""
    response = grpo_advantages(SAMPLES.rewards).reshape(-1, 1).expand(-1, 2)
    expected = torch.where(VALID, entropy_advantage(response, SAMPLES.entropy), 0.0)
    assert tokens_of("entropy_advantage").advantages.equal(expected)
    options = {"low": -1.0, "high": 1.0, "ratio": 0.5}
    drawn = clip_cov_mask(response, SAMPLES.logprobs, VALID, torch.Generator().manual_seed(0), **options)
    assert tokens_of("clip_cov", **options).chosen.equal(drawn)
