"""Every baseline in the trainer: one field chooses it, and it does what its functions say."""

import json

import pytest
import tiny
import torch
from trained import lines, trainer, weights

from policy_split.algorithms.table import ALGORITHMS
from policy_split.config import PolicySplitConfig
from policy_split.rollouts.rollout import SINGLE_BLOCKS
from policy_split.training.baseline_step import baseline_tokens

BASELINES = [name for name in ALGORITHMS if name != "policy_split"]


@pytest.mark.parametrize("name", BASELINES)
def test_trains(tmp_path, name):
    """By hidden states and by logits alike, with a reference and later updates."""
    results = []
    for fused in (True, False):
        options = {"algorithm": name, "num_iterations": 2, "beta": 0.05, "adam_epsilon": 1e-3}
        if "correct_reward" in ALGORITHMS[name].settings:  # the share of one right word of six
            options["algorithm_settings"] = {"correct_reward": 0.16}
        run = trainer(tmp_path / str(fused), model=tiny.model().double(), fused_lm_head=fused, **options)
        before = weights(run)
        run.train()
        results.append(weights(run))
        assert any(not torch.equal(value, before[key]) for key, value in weights(run).items())
        (*_, metrics) = lines(tmp_path / str(fused))
        assert metrics["normal/entropy"] > 0
        assert not [key for key in metrics if "kl_high" in key or key.startswith("high_entropy/entropy")]
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][key], value, rtol=1e-7, atol=1e-9)


def test_one_policy_draws_what_two_modes_would(tmp_path):
    run = trainer(tmp_path, algorithm="grpo")
    rollout = run.sample()
    n, p = run.config.num_generations, run.config.prompts_per_step
    assert rollout.blocks == SINGLE_BLOCKS
    assert len(rollout.texts) == len(rollout.mode) == 2 * p * n
    assert not rollout.mode.any()
    half = rollout.prompt_ids.shape[0] // 2
    assert torch.equal(rollout.prompt_ids[:half], rollout.prompt_ids[half:])
    assert not torch.equal(rollout.completion_ids[:half], rollout.completion_ids[half:])
    step, split = run.step()[0], trainer(tmp_path / "split").step()[0]
    assert step["num_tokens"] > 0.5 * split["num_tokens"]


def test_both_halves_of_a_question_are_one_group(tmp_path):
    run = trainer(tmp_path, algorithm="grpo")
    rollout = run.sample()
    rollout.logprobs = rollout.entropy = torch.zeros(rollout.mask.shape)
    tokens = baseline_tokens(run.config.chosen_algorithm, rollout, 0)
    p, n = rollout.num_prompts, rollout.num_generations
    rewards = rollout.rewards.view(2, p, n)
    for question in range(p):
        group = rewards[:, question].flatten()
        expected = (group - group.mean()) / (group.std() + 1e-6) if group.std() > 0 else torch.zeros_like(group)
        ours = tokens.advantages.view(2, p, n, -1)[:, question, :, 0].flatten()
        torch.testing.assert_close(ours, expected)
    assert torch.equal(tokens.mask, rollout.train_mask)


def test_forking_tokens_leave_the_others_untrained(tmp_path):
    run = trainer(tmp_path, algorithm="forking_tokens")
    seen = []
    step = run.update.step
    run.update.step = lambda rollout, *more: (seen.append(rollout), step(rollout, *more))[1]
    run.step()
    (rollout,) = seen
    share = rollout.train_mask.sum() / rollout.mask.sum()
    assert 0.15 < share < 0.3
    assert rollout.entropy[rollout.train_mask].min() >= rollout.entropy[rollout.mask & ~rollout.train_mask].max()


def test_adaptive_entropy_moves_and_is_resumed(tmp_path):
    settings = {"algorithm": "adaptive_entropy", "algorithm_settings": {"target": 100.0, "delta": 0.125}}
    run = trainer(tmp_path, save_steps=1, max_steps=2, **settings)
    run.train()
    assert run.progress.entropy_coef == run.update.entropy_coef == 0.25
    other = trainer(tmp_path, max_steps=3, **settings)
    other.train(resume_from_checkpoint=True)
    assert other.progress.entropy_coef == 0.375


def test_entropy_bonus_is_the_same_as_the_coefficient_of_the_normal_mode(tmp_path):
    results = []
    for options in (
        {"algorithm": "entropy_bonus", "algorithm_settings": json.dumps({"entropy_coef": 0.05})},
        {"algorithm": "grpo", "entropy_coef_normal": 0.05},
        {"algorithm": "grpo"},
    ):
        run = trainer(tmp_path / str(len(results)), **options)
        run.step()
        results.append(weights(run))
    assert all(torch.equal(value, results[1][key]) for key, value in results[0].items())
    assert any(not torch.equal(value, results[2][key]) for key, value in results[0].items())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"algorithm": "ppo"}, "algorithm='ppo' must be one of 'grpo', "),
        ({"algorithm": "grpo", "algorithm_settings": {"alpha": 1}}, "algorithm 'grpo' has no setting alpha"),
        ({"algorithm_settings": {"alpha": 1}}, "policy_split has fields of its own"),
        ({"algorithm": "kl_cov", "algorithm_settings": "{"}, "algorithm_settings='{' must be a JSON object"),
        ({"algorithm": "grpo", "regularizer": "loss"}, "algorithm='grpo' has one mode"),
        ({"algorithm": "ce_gppo", "delta": 3.0}, "algorithm='ce_gppo' has a loss of its own"),
        ({"algorithm": "grpo", "log_exact_kl": True}, "algorithm='grpo' has one mode"),
    ],
)
def test_bad_settings(options, says):
    with pytest.raises(ValueError, match=says.replace("{", r"\{").replace("(", r"\(")):
        PolicySplitConfig(**options)


@pytest.mark.parametrize(("name", "clips"), [("grpo", True), ("ce_gppo", True), ("kl_cov", False)])
def test_clip_fraction_is_of_what_is_clipped(tmp_path, name, clips):
    metrics, _ = trainer(tmp_path, algorithm=name, learning_rate=0.1, num_iterations=3).step()
    assert (metrics["normal/clip_ratio"] > 0.05) == clips


def test_evaluation_is_of_both_prompts(tmp_path):
    """What a baseline has of a split without training one: that of the prompt alone."""
    run = trainer(tmp_path, algorithm="grpo", eval_dataset=tiny.HELD_OUT[:3])
    result = run.evaluate(num_samples=2)
    assert result["high_entropy"]["entropy"] > 0
    assert "kl_high_normal" in result
