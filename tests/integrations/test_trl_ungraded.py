"""Responses that every reward function leaves out, in TRL's trainer: in no group, in no loss, in no mean."""

import math

import pytest
import tiny
import torch
from trl_runs import batch_of, saved_model, trainer

from policy_split import dual_mode_advantages, dual_mode_loss
from policy_split.integrations.interleaved import blocks_of, rows_of

pytest.importorskip("trl", reason="trl is not installed", exc_type=ImportError)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:trl"),
]
LEFT_OUT = [1, 2, 6, 11, 12, 13, 14, 15]  # of two questions with 4 responses of each mode: the last half has none


def some(completions, **columns):
    return [None if n in LEFT_OUT else float(n % 3) for n in range(len(completions))]


def graded_rows():
    return torch.tensor([n not in LEFT_OUT for n in range(16)])


def test_advantages_are_those_of_the_graded_responses_alone(tmp_path):
    """A literal group: normal mode of the first question, own responses 0, 3 and borrowed ones 4, 5, 7."""
    run = trainer(tmp_path, reward=some, per_device_train_batch_size=16, eta_high=0.0)
    batch = batch_of(run)
    own, twins = batch["advantages"].chunk(2)
    rewards = torch.tensor([0.0, 0.0, 1.0, 2.0, 1.0])  # n % 3 of 0, 3, 4, 5, 7
    expected = (rewards - 0.8) / (rewards.std() + 1e-6)
    torch.testing.assert_close(own[[0, 3], 0], expected[:2], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(twins[[4, 5, 7], 0], expected[2:], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(own[[4, 5, 7], 0], expected[2:], rtol=1e-5, atol=1e-6)  # the other mode's group
    assert not batch["advantages"][(~graded_rows()).repeat(2)].any()


@pytest.mark.parametrize("functions", ["one", "two"])
def test_loss_and_masks(tmp_path, functions):
    """What TRL's loss makes of the batch is our loss of the graded rows, the KL to the reference among it."""
    reward = some if functions == "one" else [some, lambda completions, **_: [None] * len(completions)]
    options = {"beta": 0.1, "use_bias_correction_kl": False, "per_device_train_batch_size": 16, "eta_normal": 0.1}
    run = trainer(tmp_path / "run", model=saved_model(tmp_path / "model"), reward=reward, **options)
    run.ref_model.lm_head.weight.data.mul_(0.9)
    kept, shared = [], run._shared
    run._shared = lambda output: kept.append(output["completion_mask"].clone()) or shared(output)
    batch = batch_of(run)
    graded, mask = graded_rows(), batch["completion_mask"]
    assert torch.equal(mask, (kept[0] * graded[:, None]).repeat(2, 1))
    assert int(batch["num_items_in_batch"]) == int(mask.sum()) == 2 * int(kept[0][graded].sum())
    chosen = graded.repeat(2)
    ids, whole = batch["completion_ids"], torch.cat((kept[0], kept[0]))
    input_ids = torch.cat((batch["prompt_ids"], ids), 1)
    attention = torch.cat((batch["prompt_mask"], whole), 1)
    logits = run.model(input_ids, attention_mask=attention).logits[:, -ids.shape[1] - 1 : -1]
    logprobs = torch.log_softmax(logits.detach(), -1).gather(-1, ids[..., None])[..., 0]
    rewards = torch.tensor([math.nan if value is None else value for value in some(range(16))])
    advantages, _ = dual_mode_advantages(
        blocks_of(rewards, rewards, 4),
        *(blocks_of(*x.chunk(2), 4) for x in (logprobs, whole)),
        num_prompts=2,
        num_generations=4,
        graded=blocks_of(graded, graded, 4),
        **run.args.bonus_options,
    )
    torch.testing.assert_close(batch["advantages"], torch.cat(rows_of(advantages, 4)), rtol=1e-4, atol=1e-5)
    literal = dual_mode_loss(
        logits[chosen],
        ids[chosen],
        advantages=batch["advantages"][chosen],
        mode=batch["modes"][chosen][:, None].expand_as(ids[chosen]),
        ref_logprobs=batch["ref_per_token_logps"][chosen],
        mask=mask[chosen],
        loss_type="dapo",
        kl_coef=(0.1, 0.1),
    ).loss
    torch.testing.assert_close(run._compute_loss(run.model, batch), literal, rtol=1e-4, atol=1e-6)


def test_logged_means_are_of_what_is_graded(tmp_path):
    run = trainer(tmp_path, reward=some, per_device_train_batch_size=16)
    batch_of(run)
    logged = run._metrics["train"]
    assert logged["normal/reward"] == pytest.approx([(0 + 0 + 2 + 0 + 1) / 5])  # n % 3 of 0, 3, 8, 9, 10
    assert logged["high_entropy/reward"] == pytest.approx([(1 + 2 + 1) / 3])  # of 4, 5, 7


def test_a_run_and_an_evaluation(tmp_path):
    run = trainer(tmp_path, reward=some, eval_dataset=tiny.QUESTIONS[:2], max_steps=2, per_device_train_batch_size=16)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.train()
    assert any(not torch.equal(value, before[name]) for name, value in run.model.state_dict().items())
    assert all(value.isfinite().all() for value in run.model.state_dict().values())
    assert math.isfinite(run.evaluate()["eval_normal/reward"])


def test_none_at_all_trains_nothing(tmp_path):
    run = trainer(tmp_path, reward=lambda completions, **_: [None] * len(completions), max_steps=2)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.train()
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())
    assert run.state.log_history[0]["normal/reward"] is None  # TRL's word for NaN
