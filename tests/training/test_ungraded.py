"""Rewards that are None: the response is in the files, and in nothing that is learnt from."""

import json
import math

import pytest
import tiny
import torch
from trained import trainer, weights

from policy_split.evaluation.evaluate import evaluate_in_detail, evaluate_modes

OPTIONS = [
    {},
    {"loss_type": "grpo", "beta": 0.1, "num_iterations": 2},
    {"regularizer": "loss", "eta": 0.1},
    {"algorithm": "grpo"},
    {"algorithm": "clip_higher", "algorithm_settings": {"correct_reward": 0.1}},
    {"algorithm": "entropy_driven"},
]


def some(completions, **columns):
    """The reward of tests for every other response."""
    return [None if number % 2 else value for number, value in enumerate(tiny.reward(completions))]


def a_step(tmp_path, reward, change=None, **options):
    """The trainer after a step whose rollout `change` has changed, and its metrics."""
    run = trainer(tmp_path, reward=reward, learning_rate=0.1, **options)
    sample = run.sample

    def changed():
        rollout = sample()
        if change is not None:
            change(rollout)
        return rollout

    run.sample = changed
    metrics, rollout = run.step()
    return run, metrics, rollout


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: str(options.get("algorithm", options)))
def test_a_response_without_a_reward_trains_nothing(tmp_path, options):
    """Other token ids in its place change nothing of the update."""

    def spoil(rollout):
        rollout.completion_ids[~rollout.graded] = 7

    plain, metrics, rollout = a_step(tmp_path / "a", some, **options)
    spoilt, _, _ = a_step(tmp_path / "b", some, spoil, **options)
    assert rollout.graded is not None
    assert not rollout.train_mask[~rollout.graded].any()
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(spoilt)[name], value, rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(value, tiny.model().state_dict()[name]) for name, value in weights(plain).items())
    assert all(math.isfinite(value) for value in metrics.values())
    graded = [value for value in some(["a b"] * 24) if value is not None]
    assert metrics["normal/completions/ungraded_ratio"] == 0.5
    assert len(graded) == 12


def test_metrics_are_of_what_is_graded(tmp_path):
    _, metrics, rollout = a_step(tmp_path, some)
    for mode, name in enumerate(("normal", "high_entropy")):
        rewards = rollout.rewards[12 * mode : 12 * (mode + 1)].view(3, 4)[:, ::2]
        assert metrics[f"{name}/reward"] == pytest.approx(float(rewards.mean()))
        assert metrics[f"{name}/reward_std"] == pytest.approx(float(rewards.std(1).mean()), abs=1e-6)
        assert metrics[f"{name}/frac_reward_zero_std"] == pytest.approx(
            float((rewards[:, 0] == rewards[:, 1]).float().mean())
        )
    _, metrics, _ = a_step(tmp_path, tiny.reward)
    assert metrics["normal/completions/ungraded_ratio"] == metrics["high_entropy/completions/ungraded_ratio"] == 0


def test_files_say_null(tmp_path):
    run = trainer(tmp_path, reward=some, log_completions=True, sample_steps=1, max_steps=1)
    run.train()
    for name in ("completions.jsonl", "samples.jsonl"):
        rewards = [json.loads(line)["reward"] for line in (tmp_path / name).read_text().splitlines()]
        assert rewards[1::2] == [None] * (len(rewards) // 2)
        assert None not in rewards[::2]


@pytest.mark.filterwarnings("ignore:none of .* responses has a reward")
@pytest.mark.filterwarnings("ignore:No artists with labels found")  # in the model card's plot: there is no reward
def test_a_step_without_any_reward_trains_nothing(tmp_path):
    run = trainer(tmp_path, reward=lambda completions: [None] * len(completions), max_steps=2)
    before = weights(run)
    run.train()
    assert all(torch.equal(value, before[name]) for name, value in weights(run).items())
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["normal/reward"] for row in rows] == [None, None]
    assert [row["normal/completions/ungraded_ratio"] for row in rows] == [1, 1]


def test_evaluations(tmp_path):
    model, tokenizer = tiny.model(), tiny.tokenizer()
    arguments = (model, tokenizer, tiny.QUESTIONS[:2], some, tiny.config(tmp_path))
    result = evaluate_modes(*arguments, num_samples=4, correct_reward=0.1)
    assert 0 <= result["normal"]["accuracy"] <= 1
    with pytest.raises(
        ValueError, match=r"sample 1 \(.*\) has no reward, every function returned None for it: an eval"
    ):
        evaluate_in_detail(*arguments, num_samples=4)
