"""Scoring in the update's own forward: the same weights as scoring apart, and what is not scored at all."""

import itertools

import pytest
import tiny
import torch
from trained import lines, trainer, weights

from policy_split.algorithms.table import ALGORITHMS, Samples, training_tokens
from policy_split.config import PolicySplitConfig
from policy_split.rollouts.questions import question_batches, rows_of_questions
from policy_split.training import scoring
from policy_split.training.first_pass import scores_with_update

DEAD = {"1 2 3", "7 8 9 0"}  # questions whose rewards are all equal


def some_dead(prompts, completions, **columns):
    rewards = tiny.reward(completions)
    return [0.0 if prompt in DEAD else reward for prompt, reward in zip(prompts, rewards, strict=True)]


def run_of(folder, how, *, double=True, **options):
    # other tokens side by side would round differently in norms that are computed in float32
    options = {"max_steps": 3, "eta": 0.3, "clamp": "code", "reward": some_dead, "adam_epsilon": 1e-3} | options
    options |= {"share_prompts": False}
    model = tiny.model().double() if double else tiny.model()
    run = trainer(folder / how, model=model, score_with_update=how, **options)
    run.train()
    return weights(run), lines(folder / how)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"per_device_train_batch_size": 16},  # a question at a time
        {"share_correction": "truncated", "lowest_entropy_mask_ratio": 0.2},
        {"bonus_estimator": "entropy"},
        {"bonus_estimator": "exact"},
        {"regularizer": "loss", "per_device_train_batch_size": 32},
        {"log_exact_kl": True},
        {"fused_lm_head": False},
        {"packed_batches": True},
        {"gradient_checkpointing": True, "per_device_train_batch_size": 5},
        {"num_iterations": 2},
        {"beta": 0.1, "entropy_coef_high_entropy": 0.01},
        {"kappa": None},
        {"clamp_floor": 1.0},
        {"mask_truncated_completions": True},
        {"algorithm": "grpo"},
        {"algorithm": "grpo", "gradient_accumulation_steps": 1, "per_device_train_batch_size": 8, "num_iterations": 2},
        {"algorithm": "pass_at_k", "algorithm_settings": {"k": 2, "correct_reward": 1 / 6}, "loss_type": "dr_grpo"},
        {"algorithm": "ce_gppo", "num_iterations": 2, "beta": 0.1},
    ],
    ids=lambda options: "-".join(f"{name}={value}" for name, value in options.items()) or "defaults",
)
def test_the_weights_are_those_of_scoring_apart(tmp_path, options):
    (together, said), (apart, other) = (run_of(tmp_path, how, **options) for how in ("on", "off"))
    for name, value in apart.items():
        torch.testing.assert_close(together[name], value, rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
    assert [row.pop("score_with_update") for row in said] == [1.0] * 3
    assert [row.pop("score_with_update") for row in other] == [0.0] * 3
    for row, expected in zip(said, other, strict=True):
        assert row == pytest.approx(expected, rel=1e-5, abs=1e-8)


def test_in_float32_bitwise_where_the_sums_have_the_same_shapes(tmp_path):
    """One micro-batch of all rows, all of which train."""
    together, apart = (
        run_of(tmp_path, how, double=False, reward=tiny.reward, entropy_coef_normal=1e-3)[0] for how in ("on", "off")
    )
    assert all(torch.equal(value, apart[name]) for name, value in together.items())


def forwards(run):
    """(rows, with a graph) of every forward of the model's body."""
    seen = []
    run.model.model.register_forward_hook(lambda m, i, out: seen.append((len(out[0]), torch.is_grad_enabled())))
    return seen


def test_one_forward_for_live_questions_and_none_for_dead_ones(tmp_path):
    options = {"prompts_per_step": 6, "sample_steps": 0, "share_prompts": False}
    run = trainer(tmp_path, reward=some_dead, per_device_train_batch_size=16, max_steps=1, **options)
    rollout = run.sample()
    live = [q for q in range(6) if rollout.rewards.view(4, 6, 4)[:, q].unique().numel() > 1]
    assert 0 < len(live) < 6 - 1
    run.sample = lambda: rollout
    seen = forwards(run)
    metrics, _ = run.step()
    scored = min(4, 6 - len(live))
    assert [rows for rows, graph in seen if graph] == [16] * len(live)
    assert sum(rows for rows, graph in seen if not graph) == 16 * scored
    assert metrics["score_with_update"] == 1


def test_nothing_trains_where_every_question_is_dead(tmp_path):
    run = trainer(tmp_path, reward=lambda completions: [1.0] * len(completions), sample_steps=0)
    before, seen = weights(run), forwards(run)
    metrics, rollout = run.step()
    assert sum(rows for rows, graph in seen if graph) == 1  # so that the optimizer makes its step
    assert all(torch.equal(value, before[name]) for name, value in weights(run).items())
    assert metrics["score_with_update"] == 0
    assert metrics["policy_split/bonus_dead_frac"] == 1
    assert rollout.score_weight.tolist() == [1.0] * 48  # three questions, all of them measured


def test_metrics_are_unbiased(tmp_path, monkeypatch):
    """The mean over every choice of measured questions is what scoring everything gives."""
    options = {"prompts_per_step": 6, "reward": lambda completions: [1.0] * len(completions), "sample_steps": 0}
    names = [f"{mode}/entropy" for mode in ("normal", "high_entropy")] + ["policy_split/kl_high_normal"]
    run = trainer(tmp_path, learning_rate=0.0, log_all_entropies=True, **options)
    rollout = run.sample()
    monkeypatch.setattr(run, "sample", lambda: rollout)
    exact = run.step()[0]
    run.config.log_all_entropies = False
    found = []
    for chosen in itertools.combinations(range(6), 4):
        monkeypatch.setattr(scoring, "measured_questions", lambda idle, seed, c=chosen: list(c))
        metrics = run.step()[0]
        found.append([metrics[name] for name in names])
    assert len({tuple(row) for row in found}) == 15
    expected = torch.tensor([exact[name] for name in names], dtype=torch.float64)
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float64).mean(0), expected, rtol=1e-5, atol=1e-7)


def test_whole_questions_in_the_order_of_their_responses(tmp_path):
    run = trainer(tmp_path, share_prompts=False)  # with it the rows of a prompt stay together
    rollout = run.sample()
    assert rows_of_questions(rollout, [1]) == [4, 5, 6, 7, 16, 17, 18, 19, 28, 29, 30, 31, 40, 41, 42, 43]
    for size, groups in ((16, 3), (40, 2), (48, 1), (1, 3)):
        run.config.per_device_train_batch_size = size
        batches = question_batches(rollout, [0, 1, 2], run.config)
        assert len(batches) == groups
        assert sorted(row for rows in batches for row in rows) == list(range(48))
        for rows in batches:
            lengths = [rollout.completion_lengths[row] for row in rows]
            assert lengths == sorted(lengths, reverse=True)
            assert len(rows) % 16 == 0


def test_who_scores_with_the_update():
    def answer(**options):
        return scores_with_update(PolicySplitConfig(**options), 4 * 8)

    assert not answer()  # 32 rows of a question, 8 of a micro-batch
    assert answer(per_device_train_batch_size=32)
    assert answer(gradient_checkpointing=True)
    assert not answer(per_device_train_batch_size=32, gradient_accumulation_steps=2)
    assert not answer(per_device_train_batch_size=32, rollout_sharing=False)
    assert not answer(per_device_train_batch_size=32, score_with_update="off")
    assert answer(score_with_update="on")
    assert answer(algorithm="grpo")
    assert not answer(algorithm="entropy_advantage")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"algorithm": "clip_cov"}, "algorithm='clip_cov' has to know the scores of all first"),
        ({"rollout_sharing": False}, "rollout_sharing=False scores rows that do not train"),
        ({"gradient_accumulation_steps": 3}, "gradient_accumulation_steps=3 cuts questions"),
    ],
)
def test_what_cannot_be_scored_with_the_update(options, says):
    with pytest.raises(ValueError, match=says):
        PolicySplitConfig(score_with_update="on", **options)
    with pytest.raises(ValueError, match="score_with_update='always' must be one of"):
        PolicySplitConfig(score_with_update="always")


@pytest.mark.parametrize("name", [name for name, each in ALGORITHMS.items() if not each.reads_scores])
def test_algorithms_that_read_no_scores(name):
    """NaN in their place changes nothing; the others say that they read them."""
    rewards, mask = torch.tensor([[0.0, 1, 1, 0], [1, 1, 1, 1]]), torch.ones(8, 3)
    nan = torch.full((8, 3), torch.nan)
    tokens = training_tokens(ALGORITHMS[name], Samples(rewards, nan, nan, mask), torch.Generator())
    assert tokens.advantages.isfinite().all()
    assert tokens.mask.any()
