"""PolicySplitTrainer: real runs of a few steps whose numbers are known, and every way in which a run can go wrong."""

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

from policy_split import extras
from policy_split.losses.weights import token_weights
from policy_split.models import policy as models
from policy_split.rollouts.sampling import seed_of
from policy_split.training.trainer import PolicySplitTrainer

MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]])


@pytest.mark.parametrize(
    ("loss_type", "options", "expected"),
    [
        ("grpo", {}, [1 / 12, 1 / 4, 0, 1 / 16]),  # 1 / (4 rows * length)
        ("dapo", {}, [1 / 8] * 4),  # 1 / 8 tokens
        ("dapo", {"tokens": 16.0}, [1 / 16] * 4),  # two processes, 24 and 8 tokens
        ("bnpo", {"tokens": 16.0}, [1 / 8] * 4),  # this process alone
        ("dr_grpo", {}, [1 / 40] * 4),  # 1 / (4 rows * 10)
    ],
)
def test_token_weights(loss_type, options, expected):
    weights = token_weights(MASK, loss_type, max_completion_length=10, **options)
    torch.testing.assert_close(weights, torch.tensor(expected)[:, None] * MASK)


def test_token_weights_of_nothing_and_of_an_unknown_type():
    for loss_type in ("grpo", "dapo", "bnpo", "dr_grpo"):
        assert not token_weights(torch.zeros(2, 3), loss_type, max_completion_length=3).any()
    with pytest.raises(ValueError, match="loss_type='ppo'"):
        token_weights(MASK, "ppo", max_completion_length=3)


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


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "bnpo", "dr_grpo"])
def test_micro_batches_do_not_change_the_update(tmp_path, loss_type):
    results = []
    for size in (64, 7):
        options = {"per_device_train_batch_size": size, "loss_type": loss_type, "num_iterations": 2, "beta": 0.1}
        options |= {"entropy_coef_high_entropy": 0.01, "max_steps": 1, "adam_epsilon": 1e-3}
        run = trainer(tmp_path / str(size), model=tiny.model().double(), **options)
        results.append((run.train(), weights(run)))
    for name, value in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], value, rtol=1e-5, atol=1e-7)
    assert results[0][0]["grad_norm"] == pytest.approx(results[1][0]["grad_norm"], rel=1e-5)
    assert results[0][0]["kl"] == pytest.approx(results[1][0]["kl"], rel=1e-5)


def test_rows_without_advantage_change_nothing(tmp_path):
    results = []
    for coefficient in (0.0, 1e-30):  # with an entropy term, however small, every row is computed
        run = trainer(
            tmp_path / str(coefficient),
            model=tiny.model().double(),
            reward=lambda prompts, completions: [
                float("a" in c and p in ("4", "5 6")) for p, c in zip(prompts, completions, strict=True)
            ],
            entropy_coef_normal=coefficient,
            adam_epsilon=1e-3,
            prompts_per_step=6,
            share_prompts=False,
        )
        computed = []
        run.model.lm_head.register_forward_hook(
            lambda m, i, out, seen=computed: seen.append(i[0].shape[0]) if i[0].requires_grad else None
        )
        run.train()
        results.append((weights(run), sum(computed)))
    assert results[0][1] < results[1][1] == 2 * 4 * 6 * 4
    for name, value in results[0][0].items():
        torch.testing.assert_close(results[1][0][name], value, rtol=1e-6, atol=1e-9)


def test_first_update_is_on_policy(tmp_path):
    """Ratio 1: nothing is clipped, and the loss is minus the weighted mean of the advantages."""
    run = trainer(tmp_path, eta=0.3, clamp="code", kappa=None, epsilon=0.0)
    kept, tokens = {}, run.tokens
    run.tokens = lambda rollout: kept.setdefault("out", tokens(rollout))
    metrics, rollout = run.step()
    expected = -(kept["out"].advantages * rollout.mask).sum() / rollout.mask.sum()
    assert metrics["normal/clip_ratio"] == metrics["high_entropy/clip_ratio"] == 0.0
    assert metrics["loss"] == pytest.approx(expected.item(), abs=1e-6)


def test_old_and_new_log_probs_agree_before_an_update(tmp_path):
    """The ratio that later updates would have, had the weights not moved: score and backward are one policy."""
    metrics, _ = trainer(tmp_path, learning_rate=0.0, num_iterations=2, epsilon=1e-4).step()
    assert metrics["normal/clip_ratio"] == metrics["high_entropy/clip_ratio"] == 0.0


def test_later_updates_are_clipped(tmp_path):
    metrics, _ = trainer(tmp_path, learning_rate=0.1, num_iterations=3).step()
    assert metrics["normal/clip_ratio"] > 0.05


def test_several_optimizer_steps_per_rollout(tmp_path):
    run = trainer(tmp_path, gradient_accumulation_steps=2, per_device_train_batch_size=10, num_iterations=2)
    steps = []
    step = run.update.step
    run.update.step = lambda rollout, rows, a, old, ref, *more: (
        steps.append((len(rows), old is None)) or step(rollout, rows, a, old, ref, *more)
    )
    run.step()
    assert steps == [(20, True), (20, False), (8, False), (20, False), (20, False), (8, False)]


def test_dropout_does_not_reach_the_ratio(tmp_path):
    for checkpointing in (False, True):
        model = tiny.model(attention_dropout=0.5)
        options = {"learning_rate": 0.0, "num_iterations": 2, "epsilon": 1e-4, "gradient_checkpointing": checkpointing}
        metrics, _ = trainer(tmp_path, model=model, **options).step()
        assert metrics["normal/clip_ratio"] == metrics["high_entropy/clip_ratio"] == 0.0


def test_gradient_checkpointing_gives_the_same_update(tmp_path):
    results = []
    for checkpointing in (False, True):
        run = trainer(tmp_path / str(checkpointing), gradient_checkpointing=checkpointing, adam_epsilon=1e-3)
        run.train()
        results.append(weights(run))
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-4, atol=1e-6)


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


def test_non_finite_gradients_are_skipped_counted_and_stop_the_run(tmp_path):
    run = trainer(tmp_path, max_steps=10, max_skipped_steps=2)
    before = weights(run)
    run.policy.bare.lm_head.weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(FloatingPointError, match="3 optimizer steps in a row were not finite"):
        run.train()
    rows = lines(tmp_path)
    assert [row["skipped_steps"] for row in rows] == [1.0, 1.0]
    assert rows[0]["grad_norm"] is None  # JSON has no NaN
    assert all(torch.equal(value, before[name]) for name, value in weights(run).items())


def test_one_bad_step_is_survived(tmp_path):
    run = trainer(tmp_path, max_steps=2, max_skipped_steps=0)
    run.config.max_skipped_steps = 1
    handle = run.policy.bare.lm_head.weight.register_hook(lambda gradient: gradient * math.inf)
    first, _ = run.step()
    handle.remove()
    second, _ = run.step()
    assert (first["skipped_steps"], second["skipped_steps"], run.progress.skipped) == (1.0, 0.0, 0)
    assert all(value.isfinite().all() for value in weights(run).values())


def test_bfloat16_autocast(tmp_path):
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    try:
        last = trainer(tmp_path, bf16=True).train()
    finally:
        AcceleratorState._reset_state()
    assert math.isfinite(last["grad_norm"])
    assert last["grad_norm"] > 0


def nan_reward(completions):
    return [math.nan] * len(completions)


@pytest.mark.parametrize(
    ("options", "error", "expected"),
    [
        ({"dataset": []}, ValueError, "train_dataset has no rows"),
        ({"dataset": [{"q": "1"}]}, ValueError, "train_dataset has no column 'prompt'; its columns are q"),
        ({"dataset": "nothing.jsonl"}, FileNotFoundError, r"nothing\.jsonl: there is no such file"),
        ({"max_prompt_length": 4}, ValueError, "train_dataset, row 3: the high_entropy prompt has 5 tokens"),
        ({"dataset": [{"prompt": [{"role": "user", "content": "1"}]}]}, ValueError, "row 0: .*no chat template"),
        ({"max_completion_length": 60}, ValueError, r"\(5 tokens\) and max_completion_length=60 .* 64 positions"),
        ({"model": 3}, TypeError, "model must be a PreTrainedModel or a name or path, got int"),
        (
            {"model": lambda: tiny.model(vocab_size=20)},
            ValueError,
            "the tokenizer has 26 tokens, the model 20 embeddings",
        ),
        ({"reward": lambda completions, answer: []}, ValueError, "needs answer; it can have completion_ids"),
        ({"reward_weights": [1.0, 2.0]}, ValueError, "one weight for each of the 1 reward functions"),
        ({"eval_steps": 1}, ValueError, "eval_steps=1 needs an eval_dataset"),
        ({"eval_dataset": []}, ValueError, "eval_dataset has no rows"),
        ({"report_to": "paper"}, ValueError, "unknown tracker 'paper'; expected tensorboard, wandb, trackio"),
        ({"reward": nan_reward}, ValueError, r"nan_reward, sample 0 \(.*\): returned nan"),
        ({"reward": lambda completions: [1.0]}, ValueError, "returned 1 rewards for 24 completions"),
    ],
)
def test_bad_input_leaves_nothing_behind(tmp_path, options, error, expected):
    options = options | ({"model": options["model"]()} if callable(options.get("model")) else {})
    with pytest.raises(error, match=expected):
        trainer(tmp_path / "run", **options).train()
    assert not (tmp_path / "run").exists()


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs the package wandb: pip install policy-split\[trackers\]"):
        trainer(tmp_path, report_to="wandb")
    with pytest.raises(ImportError, match=r"pip install policy-split\[flash-attn\]"):
        models.load_model("some/model", tiny.config(tmp_path, attn_implementation="flash_attention_2"))


def test_a_folder_with_a_run_is_not_overwritten_by_chance(tmp_path):
    trainer(tmp_path, max_steps=1).train()
    with pytest.raises(FileExistsError, match=r"already holds a run \(metrics\.jsonl, samples\.jsonl\)"):
        trainer(tmp_path, max_steps=1).train()
    trainer(tmp_path, overwrite_output_dir=True).train()
    assert len(lines(tmp_path)) == 2
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        trainer(tmp_path).train(resume_from_checkpoint=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a file"):
        trainer(tmp_path / "file").train()


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
