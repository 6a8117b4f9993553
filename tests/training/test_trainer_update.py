"""Updates of a step: how rows are cut changes nothing, ratios begin at 1, gradients not finite are skipped."""

import math

import pytest
import tiny
import torch
from trained import lines, trainer, weights


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
