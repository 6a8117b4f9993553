"""PolicySplitTrainer: real runs of a few steps whose numbers are known."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from trained import lines, trainer, weights
from transformers import AutoModelForCausalLM, AutoTokenizer

from policy_split.rollouts.sampling import seed_of
from policy_split.training.trainer import PolicySplitTrainer


@pytest.mark.parametrize("chat", [False, True])
def test_same_seed_gives_the_same_run_whatever_the_global_random_state(tmp_path, chat):
    runs = []
    for name, seed in (("first", 42), ("second", 42), ("other", 43)):
        torch.manual_seed(len(runs))
        run = trainer(tmp_path / name, chat=chat, seed=seed)
        run.train()
        runs.append((weights(run), lines(tmp_path / name)))
    assert runs[0][1] == runs[1][1] != runs[2][1]
    assert all(torch.equal(runs[0][0][name], runs[1][0][name]) for name in runs[0][0])


def test_every_step_draws_anew_and_again_the_same(tmp_path):
    """One question, weights that do not move: what differs is the draw."""
    texts = []
    for _ in range(2):
        run = trainer(tmp_path, dataset=tiny.QUESTIONS[:1], learning_rate=0.0)
        texts.append([run.step()[1].texts for _ in range(2)])
    assert texts[0] == texts[1]
    assert texts[0][0] != texts[0][1]


def test_metrics(tmp_path):
    run = trainer(tmp_path, num_generations=3, log_completions=True, logging_steps=2)
    last = run.train()
    rows = lines(tmp_path, timed=True)
    assert rows[-1] == last
    assert [row["step"] for row in rows] == [1, 2]
    assert [row["epoch"] for row in rows] == [0.5, 1.0]
    for row in rows:
        assert all(value is not None for value in row.values())
        for mode in ("normal", "high_entropy"):
            assert 0 < row[f"{mode}/entropy"] < math.log(len(tiny.WORDS))
            assert 1 <= row[f"{mode}/completions/mean_length"] <= 6
            assert {
                f"{mode}/{name}" for name in ("reward", "reward_std", "clip_ratio", "frac_reward_zero_std")
            } <= row.keys()
        assert row["policy_split/kl_high_normal"] > 0
        assert row["policy_split/kl_normal_high"] > 0
        assert 0 <= row["policy_split/bonus_dead_frac"] <= 1
        assert 0 <= row["policy_split/bonus_clamped_frac"] <= 1
        assert row["skipped_steps"] == 0
        assert row["step_time"] > 0
    tokens = 9 * (rows[0]["normal/completions/mean_length"] + rows[0]["high_entropy/completions/mean_length"])
    assert rows[0]["num_tokens"] == pytest.approx(tokens)
    assert rows[1]["num_tokens"] > rows[0]["num_tokens"]
    assert [row["learning_rate"] for row in rows] == [0.01, 0.005]
    completions = [json.loads(line) for line in (tmp_path / "completions.jsonl").read_text().splitlines()]
    assert len(completions) == 18  # step 2 alone
    assert completions[0].keys() == {"step", "mode", "prompt", "completion", "reward"}
    assert completions[-1]["mode"] == "high_entropy"
    assert completions[-1]["prompt"].startswith("explore")
    mean = sum(row["reward"] for row in completions[:9]) / 9
    assert rows[1]["normal/reward"] == pytest.approx(mean)


def test_reference_model(tmp_path):
    """Against itself the KL is 0 until the weights move; against another model it is there from the start."""
    run = trainer(tmp_path / "own", beta=0.1)
    before = {name: value.clone() for name, value in run.reference.bare.state_dict().items()}
    run.train()
    rows = lines(tmp_path / "own")
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert rows[1]["kl"] > 1e-5
    assert all(torch.equal(value, before[name]) for name, value in run.reference.bare.state_dict().items())
    other, _ = trainer(tmp_path / "other", beta=0.1, ref_model=tiny.model(seed=5)).step()
    assert other["kl"] > 0.1


def test_exact_entropy_as_bonus(tmp_path):
    options = {"eta": 0.3, "clamp": "code", "share_correction": "truncated"}
    sampled, _ = trainer(tmp_path, **options).step()
    exact, _ = trainer(tmp_path, bonus_estimator="entropy", **options).step()
    assert sampled["grad_norm"] != exact["grad_norm"]
    assert sampled["normal/reward"] == exact["normal/reward"]


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_a_preferred_token_is_learnt_in_both_modes(tmp_path, kind):
    options = {"max_steps": 30, "num_generations": 8, "learning_rate": 2e-2, "lr_scheduler_type": "constant"}
    model = tiny.model(kind, scale=1.0)
    last = trainer(tmp_path, model=model, eta=0.1, clamp="code", share_correction="truncated", **options).train()
    first = lines(tmp_path)[0]
    for mode in ("normal", "high_entropy"):
        assert first[f"{mode}/reward"] < 0.15
        assert last[f"{mode}/reward"] > 0.8


def test_resumed_run_equals_an_uninterrupted_one(tmp_path):
    options = {"max_steps": 4, "save_steps": 2, "save_total_limit": 1, "eval_steps": 2, "eval_num_samples": 2}
    options |= {"eval_dataset": tiny.HELD_OUT[:2], "log_completions": True}
    whole = trainer(tmp_path / "whole", **options)
    whole.train()
    assert [path.name for path in (tmp_path / "whole/checkpoints").iterdir()] == ["checkpoint-4"]

    cut = trainer(tmp_path / "cut", **options)
    step = cut.step
    cut.step = lambda: step() if cut.progress.step < 3 else (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    assert len(lines(tmp_path / "cut")) == 3
    with open(tmp_path / "cut" / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')  # a machine that went down
    resumed = trainer(tmp_path / "cut", **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.progress.step == 4
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert (tmp_path / "cut/completions.jsonl").read_text() == (tmp_path / "whole/completions.jsonl").read_text()
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights(resumed).items())


def test_evaluation_does_not_change_the_run(tmp_path):
    runs = [
        trainer(tmp_path / "a"),
        trainer(tmp_path / "b", eval_dataset=tiny.HELD_OUT, eval_steps=1, eval_num_samples=2),
    ]
    for run in runs:
        run.train()
    assert all(torch.equal(value, weights(runs[1])[name]) for name, value in weights(runs[0]).items())
    row = lines(tmp_path / "b")[0]
    assert 0 <= row["eval/normal/accuracy"] <= 1
    assert row["eval/num_prompts"] == 6
    assert runs[0].evaluate(tiny.QUESTIONS[:1], num_samples=3)["num_samples"] == 3


def test_saved_model_can_be_loaded_and_trained_by_name(tmp_path):
    run = trainer(tmp_path / "run", model=tiny.model(tie_word_embeddings=True), chat=True)
    run.train()
    path = str(tmp_path / "run")
    loaded = AutoModelForCausalLM.from_pretrained(path)
    assert all(torch.equal(value, weights(run)[name]) for name, value in loaded.state_dict().items())
    assert AutoTokenizer.from_pretrained(path).chat_template == tiny.CHAT_TEMPLATE
    config = tiny.config(tmp_path / "again", max_steps=1)
    PolicySplitTrainer(path, None, tiny.reward, tiny.QUESTIONS, config).train()
    assert lines(tmp_path / "again")[0]["step"] == 1


def test_epochs_decide_where_max_steps_does_not(tmp_path):
    assert trainer(tmp_path, max_steps=-1, num_train_epochs=1.5, prompts_per_step=4).max_steps == 3


def test_two_processes_end_with_the_same_weights(tmp_path):
    script = Path(tiny.__file__).with_name("two_processes.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", script, tmp_path]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=200, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in lines(tmp_path)] == [1, 2, 3]
    assert 0 <= lines(tmp_path)[-1]["eval/normal/accuracy"] <= 1


def test_seed_of():
    assert seed_of(42, "rollout", 1, 0) == seed_of(42, "rollout", 1, 0) != seed_of(42, "rollout", 10, 0)
    assert 0 <= seed_of(1) < 2**63
