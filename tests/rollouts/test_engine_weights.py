"""What an engine is given: every weight once, whole, by the name that the saved checkpoint has."""

import tiny
import torch
from safetensors.torch import load_file
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from policy_split.models.adapters import add_adapter, merged
from policy_split.models.lm_head import patch_lm_head
from policy_split.rollouts.engine_weights import named_weights


def saved(model, folder):
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def assert_as_saved(model, expected):
    given = list(named_weights(model))
    assert sorted(name for name, _ in given) == sorted(expected)
    for name, value in given:
        assert not value.requires_grad
        assert torch.equal(value, expected[name]), name


def test_as_the_saved_checkpoint_has_them(tmp_path):
    model = tiny.model("llama")
    assert_as_saved(patch_lm_head(model), saved(model, tmp_path))


def test_tied_weights_come_once(tmp_path):
    model = tiny.model("llama", tie_word_embeddings=True)
    expected = saved(model, tmp_path)
    assert "lm_head.weight" not in expected
    assert_as_saved(model, expected)


def test_experts_have_the_names_of_the_checkpoint(tmp_path):
    settings = {"vocab_size": 26, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_experts": 4}
    settings |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "moe_intermediate_size": 8}
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**settings, num_experts_per_tok=2))
    expected = saved(model, tmp_path)
    assert "model.layers.0.mlp.experts.3.down_proj.weight" in expected
    assert_as_saved(model, expected)


def test_an_adapter_comes_merged(tmp_path):
    model = add_adapter(tiny.model(), tiny.config(tmp_path, use_peft=True))
    with torch.no_grad():
        for name, value in model.named_parameters():
            value += 0.1 * ("lora_B" in name)
    expected = saved(merged(model), tmp_path)
    assert not torch.equal(
        expected["model.layers.0.self_attn.q_proj.weight"],
        tiny.model().state_dict()["model.layers.0.self_attn.q_proj.weight"],
    )
    assert_as_saved(model, expected)
    assert any("lora_A" in name for name, _ in model.named_parameters())  # which stays as it was
