"""Our trainer with vLLM for real: both modes, weights that arrive, stale ones that are noticed, adapters."""

import math

import pytest
import torch
import vllm_models
from trained import lines, trainer

from policy_split.modes import encode_modes
from policy_split.rollouts import vllm_engine
from policy_split.rollouts.engine import EngineError


def run_of(folder, name="qwen3", **options):
    return trainer(folder, model=vllm_models.model(name), **vllm_models.SETTINGS, **options)


@pytest.mark.parametrize("options", [{}, {"use_peft": True, "lora_target_modules": ["q_proj", "down_proj"]}])
def test_three_steps_of_both_modes_and_the_engine_has_the_trained_weights(tmp_path, options):
    run = run_of(tmp_path, "llama-tied", learning_rate=0.05, **options)
    prompts = [
        ids for question in run.train_dataset for ids in encode_modes(run.tokenizer, question["prompt"], run.config, "")
    ]
    model, answers = run.policy.bare, []
    for _ in range(3):
        metrics, rollout = run.step()
        assert metrics["sampling/logp_difference"] < 1e-5
        assert math.isfinite(metrics["policy_split/kl_high_normal"])
        for mode in (0, 1):
            row = mode * 12
            asked = rollout.prompt_ids[row, -rollout.prompt_lengths[row] :].tolist()
            assert asked in prompts[mode::2]
        with run.sampler.ready() as engine:
            answers.append([each.ids for each in engine.generate(prompts, range(12), temperature=0.0, max_tokens=6)])
        assert answers[-1] == vllm_models.greedy(model.eval(), prompts, 6)
    assert answers[0] != answers[2]
    run.sampler.close()


def test_an_lm_head_that_stays_behind_stops_the_run(tmp_path, monkeypatch):
    """vLLM on a CPU packs its weights, and of tied ones leaves the LM head as it was, with no error."""
    monkeypatch.setattr(vllm_engine, "_pack_tied_head", lambda model: None)
    run = run_of(tmp_path, "llama-tied")
    with pytest.raises(EngineError, match=r"^vLLM 0\.31\.0\S* does not have the model's weights: .* differ by up to"):
        run.train()
    assert not (tmp_path / "metrics.jsonl").exists()
    run.sampler.close()


def test_bfloat16_evaluations_and_weights_of_the_engines_tokens(tmp_path):
    """The log-probs of an engine that computes in bfloat16 differ; the metric says by how much."""
    options = {"vllm_importance_sampling_correction": True, "max_steps": 2}
    options |= {"eval_steps": 1, "eval_dataset": [{"prompt": "1 2 4", "wanted": "a"}], "eval_num_samples": 2}
    state = torch.get_rng_state()
    run = trainer(tmp_path, model=vllm_models.model().bfloat16(), **vllm_models.SETTINGS, **options)
    run.train()
    assert torch.equal(state, torch.get_rng_state())
    assert all(0 < row["sampling/logp_difference"] < 0.1 for row in lines(tmp_path))
    assert all(0 <= row["eval/high_entropy/accuracy"] <= 1 for row in lines(tmp_path))
    assert run.sampler.engine is None
