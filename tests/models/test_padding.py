"""Models that read what stands in front of a short prompt."""

import pytest
import tiny
import torch
import transformers
from lm_models import SIZES, made
from trained import trainer

from policy_split.commands.main import main
from policy_split.evaluation.evaluate import evaluate_modes
from policy_split.models.policy import Policy

RWKV = {"vocab_size": 26, "hidden_size": 16, "attention_hidden_size": 16, "intermediate_size": 32}
RWKV |= {"num_hidden_layers": 2, "bos_token_id": 1, "eos_token_id": 2}


def rwkv():
    torch.manual_seed(0)
    return transformers.RwkvForCausalLM(transformers.RwkvConfig(**RWKV))


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2", "mixtral", "cohere", "granite"])
def test_models_that_honour_the_mask(kind):
    Policy(made(kind), tiny.tokenizer()).check_padding()


def test_so_does_a_recurrent_one():
    torch.manual_seed(0)
    model = transformers.MambaForCausalLM(transformers.MambaConfig(**SIZES, state_size=4))
    Policy(model.eval(), tiny.tokenizer()).check_padding()


def test_a_model_that_reads_the_padding_is_refused(tmp_path):
    says = r"RwkvForCausalLM does not honour its attention mask: a longer prompt beside a row moves its logits by"
    with pytest.raises(ValueError, match=says):
        trainer(tmp_path / "run", model=rwkv())
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=says):
        evaluate_modes(rwkv(), tiny.tokenizer(), tiny.QUESTIONS, tiny.reward, tiny.config(tmp_path), 2)


def test_so_is_a_reference_that_does(tmp_path):
    with pytest.raises(ValueError, match="RwkvForCausalLM does not honour its attention mask"):
        trainer(tmp_path / "run", ref_model=rwkv(), beta=0.1)


def test_both_modes_are_not_sampled_behind_padding_that_is_read(tmp_path, capsys):
    """One mode alone has prompts of one length."""
    rwkv().save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    asked = ["sample", str(tmp_path), "--prompt", "1 2", "--num-samples", "2", "--max-tokens", "3", "--use-cpu"]
    assert main(asked) != 0
    assert "RwkvForCausalLM does not honour its attention mask: a longer prompt" in capsys.readouterr().err
    assert main([*asked, "--mode", "normal"]) == 0
