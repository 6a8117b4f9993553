"""Packed batches under attn_implementation="flash_attention_2": transformers' own path, its kernels in PyTorch."""

import flash_attn_stand_in
import pytest
import tiny
import torch
from lm_models import SIZES
from packed_cases import QUESTIONS, rolled, sliding
from trained import lines, trainer, weights
from transformers import Lfm2Config, Lfm2ForCausalLM

from policy_split.models.policy import Policy, load_model
from policy_split.rollouts.micro_batches import micro_batches
from policy_split.rollouts.rollout import score

LAYERS = 2


@pytest.fixture
def calls(monkeypatch, tmp_path):
    return flash_attn_stand_in.install(monkeypatch, tmp_path / "site")


def flash(model):
    model.set_attn_implementation("flash_attention_2")
    return model


@pytest.mark.parametrize("options", [{}, {"fused_lm_head": False}, {"gradient_checkpointing": True}])
def test_a_run_is_that_of_padded_sdpa(tmp_path, calls, options):
    options |= {"num_iterations": 2, "per_device_train_batch_size": 7, "adam_epsilon": 1e-3, "dataset": QUESTIONS}
    results = []
    for kind in (lambda model: model, flash):
        folder = tmp_path / str(len(results))
        run = trainer(folder, model=kind(tiny.model().double()), share_prompts=False, **options)
        assert run.policy.packed is bool(results)  # by itself, with flash attention alone
        run.train()
        results.append((weights(run), lines(folder)))
    assert any(call["grad"] for call in calls.varlen)
    for name, value in results[0][0].items():
        torch.testing.assert_close(results[1][0][name], value, rtol=1e-9, atol=1e-11)
    for padded, packed in zip(results[0][1], results[1][1], strict=True):
        assert packed == pytest.approx(padded, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("make", [tiny.model, sliding])
def test_the_kernels_are_given_the_bounds_of_the_rows(tmp_path, calls, make):
    """In each layer, of each micro-batch, and the model's window; never a mask or a rectangle."""
    config = tiny.config(tmp_path, per_device_train_batch_size=7)
    padded = Policy(make().eval(), tiny.tokenizer())
    packed = Policy(flash(make().eval()), tiny.tokenizer())
    assert (padded.packed, packed.packed) == (False, True)
    rollout = rolled(padded, config)
    batches = micro_batches(rollout, range(len(rollout.mode)), config)
    calls.varlen.clear()
    calls.rectangular = 0
    found = score(packed, rollout, batches, 1.0)
    expected = score(padded, rollout, batches, 1.0)
    assert calls.rectangular == 0
    assert len(calls.varlen) == LAYERS * len(batches)
    for call, rows in zip(calls.varlen[::LAYERS], batches, strict=True):
        lengths = [rollout.prompt_lengths[row] + rollout.completion_lengths[row] - 1 for row in rows]
        assert call["longest"] == max(lengths)
        assert call["bounds"] == [sum(lengths[:n]) for n in range(len(lengths) + 1)]
    torch.testing.assert_close(found.logprobs, expected.logprobs, rtol=1e-4, atol=2e-5)


def test_packed_batches_false_is_padded(tmp_path, calls):
    assert not Policy(flash(tiny.model()), tiny.tokenizer(), packed=False).packed


def test_a_model_that_mixes_sequences_is_padded_with_a_warning(calls):
    model = flash(Lfm2ForCausalLM(Lfm2Config(**SIZES, layer_types=["conv", "full_attention"])))
    with pytest.warns(UserWarning, match="batches are padded: Lfm2ForCausalLM cannot be given packed sequences: one"):
        assert not Policy(model, tiny.tokenizer()).packed
    with pytest.raises(ValueError, match="packed_batches=True: Lfm2ForCausalLM"):
        Policy(model, tiny.tokenizer(), packed=True)


def test_a_model_by_name(tmp_path, calls):
    tiny.model().save_pretrained(tmp_path / "model")
    config = tiny.config(tmp_path, attn_implementation="flash_attention_2")
    assert Policy(load_model(str(tmp_path / "model"), config), tiny.tokenizer()).packed
