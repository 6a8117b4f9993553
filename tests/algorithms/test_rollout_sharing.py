"""The ablation without rollout sharing: a mode's groups and its training are of its own responses alone."""

import math

import pytest
import tiny
import torch
from trained import trainer
from worked_example import EXAMPLE, LOGPROBS, MASK, REWARDS, S_HIGH, ZERO, close, rows

from policy_split.algorithms.advantages import bonus_statistics, dual_mode_advantages
from policy_split.config import PolicySplitConfig
from policy_split.rollouts.micro_batches import optimizer_batches

UNSHARED = {"rollout_sharing": False, **EXAMPLE}
# The worked example's own responses of the high-entropy mode, c0 c1 d: b_H = 1 6 5, mean 4, squares 14, std = sqrt(7);
# R = 0 4, A = -+ sqrt(2) / 2. Those of the normal mode, a b, have equal rewards.
A, STD = math.sqrt(0.5), math.sqrt(7)
B = [-3 / STD, 2 / STD, 1 / STD, 0, 0]


def test_literal():
    advantages, bonus = dual_mode_advantages(REWARDS, LOGPROBS, MASK, eta=0.3, kappa=None, **UNSHARED)
    close(bonus, rows(ZERO, [0.3 * b for b in B]))
    close(advantages, rows(ZERO, [0.3 * b + a for b, a in zip(B, (-A, -A, A, 0, 0), strict=True)]))


def test_literal_clamp():
    """|A| / kappa = .354 bounds all three, and the share correction has nothing to correct."""
    options = {"eta": 0.1, "share_correction": "truncated", **UNSHARED}
    _, bonus = dual_mode_advantages(REWARDS, LOGPROBS, MASK, **options)
    close(bonus, rows(ZERO, [0.1 * x for x in (-A / 2, A / 2, A / 2, 0, 0)]))


def test_the_other_mode_still_counts_in_the_bonus():
    other = rows([-1.0] * 5, [-x for x in S_HIGH], fill=math.nan)
    options = {"eta": 0.3, "kappa": None, **UNSHARED}
    bonuses = [dual_mode_advantages(REWARDS, x, MASK, **options)[1] for x in (LOGPROBS, other)]
    assert not torch.equal(*bonuses)


def test_dead_groups_are_of_the_own_responses():
    assert bonus_statistics(REWARDS, LOGPROBS, MASK, **UNSHARED).dead_fraction == 0.5
    assert bonus_statistics(REWARDS, LOGPROBS, MASK, **EXAMPLE).dead_fraction == 0


def test_only_own_rows_train(tmp_path):
    run = trainer(tmp_path, rollout_sharing=False)
    rollout = run.sample()
    own = len(rollout.texts)
    assert own == len(rollout.mode) // 2
    for steps in (None, 1):
        run.config.gradient_accumulation_steps = steps
        trained = [row for batch in optimizer_batches(rollout, run.config, 0) for row in batch]
        assert sorted(trained) == list(range(own))
    run.config.gradient_accumulation_steps = None
    assert run.step()[0]["policy_split/kl_high_normal"] >= 0  # still scored under both prompts


def test_bad_settings():
    with pytest.raises(ValueError, match="rollout_sharing=False leaves one out"):
        PolicySplitConfig(rollout_sharing=False, regularizer="loss")
    with pytest.raises(ValueError, match="rollout_sharing='no' must be True or False"):
        PolicySplitConfig(rollout_sharing="no")
    with pytest.raises(TypeError, match="rollout_sharing must be True or False"):
        dual_mode_advantages(REWARDS, LOGPROBS, MASK, **UNSHARED | {"rollout_sharing": 1})
    assert tiny.config("unused").rollout_sharing
