"""TRL's own trainer with vLLM in its process: both modes are asked in order, and the trained weights arrive."""

import os
from functools import partial

import pytest
import tiny
import torch
import vllm_models
from accelerate.state import AcceleratorState
from transformers import AutoModelForCausalLM

from policy_split.modes import encode_modes

pytest.importorskip("trl", reason="trl is not installed", exc_type=ImportError)
from trl_runs import trainer


@pytest.fixture
def engine(vllm, monkeypatch):
    """TRL hands single weights to layers, which vLLM's CPU build has packed and dropped: here they keep them.

    And TRL names no dtype: on a CPU vLLM takes bfloat16 for a float32 model.
    """
    generation = pytest.importorskip("trl.generation.vllm_generation", reason="trl is not installed")
    from vllm.model_executor.layers import utils

    def keeping(layer, remove_weight):
        layer.cpu_linear = torch.nn.functional.linear

    monkeypatch.setattr(utils, "dispatch_cpu_unquantized_gemm", keeping)
    monkeypatch.setattr(generation, "LLM", partial(vllm.LLM, dtype="float32", enforce_eager=True))
    before = dict(os.environ)
    yield generation
    os.environ.clear()  # TRL makes its process one of a group, and accelerate would believe it in the next test
    os.environ.update(before)
    AcceleratorState._reset_state(reset_partial_state=True)


def test_three_steps_in_one_process(tmp_path, engine, monkeypatch):
    folder, tokenizer = tmp_path / "model", tiny.tokenizer()
    vllm_models.model("llama-tied").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    options = {"use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.1, "max_steps": 3}
    options |= {"vllm_max_model_length": 32, "learning_rate": 0.05}
    run = trainer(tmp_path / "run", model=AutoModelForCausalLM.from_pretrained(folder), tokenizer=tokenizer, **options)
    asked, single = [], run._generate_single_turn

    def seen(prompt_ids, *more):
        asked.append([list(ids) for ids in prompt_ids])
        return single(prompt_ids, *more)

    returned = []
    generate = engine.VLLMGeneration.generate

    def generated(self, prompts, *more, **options):
        out = generate(self, prompts, *more, **options)
        returned.append(([list(ids) for ids in prompts], out))
        return out

    monkeypatch.setattr(run, "_generate_single_turn", seen)
    monkeypatch.setattr(engine.VLLMGeneration, "generate", generated)
    run.train()
    wanted = [encode_modes(tokenizer, q["prompt"], tiny.config(tmp_path), "here") for q in tiny.QUESTIONS]
    assert len(asked) == 3
    for ids in asked:
        assert ids in [[pair[0]] * 4 + [pair[1]] * 4 for pair in wanted]
    for (prompts, (returned_ids, *_)), ids in zip(returned, asked, strict=True):
        assert prompts == ids
        assert [list(each) for each in returned_ids] == ids
    lines = [line for line in run.state.log_history if "loss" in line]
    assert len(lines) == 3
    assert all(0 <= line["sampling/sampling_logp_difference/mean"] < 1e-4 for line in lines)
    assert all(line["policy_split/kl_high_normal"] >= 0 for line in lines)
    run.vllm_generation.sync_weights()
    prompts = [ids for pair in wanted for ids in pair]
    from vllm import SamplingParams

    parameters = SamplingParams(temperature=0.0, max_tokens=6, stop_token_ids=[2], ignore_eos=True, detokenize=False)
    answers = run.vllm_generation.llm.generate(
        [{"prompt_token_ids": ids} for ids in prompts], parameters, use_tqdm=False
    )
    trained = run.model.eval()
    assert [list(each.outputs[0].token_ids) for each in answers] == vllm_models.greedy(trained, prompts, 6)
    before = AutoModelForCausalLM.from_pretrained(folder)
    assert vllm_models.greedy(before, prompts, 6) != vllm_models.greedy(trained, prompts, 6)
