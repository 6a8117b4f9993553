"""Models that read what stands in front of a short prompt, and tokens that no tokenizer has."""

import pytest
import tiny
import torch
import transformers
from lm_models import SIZES, made
from trained import trainer
from transformers import ByT5Tokenizer

from policy_split.evaluation.evaluate import evaluate_modes
from policy_split.models.policy import Policy
from policy_split.rollouts.drawn import check_drawn

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


def test_a_token_that_the_tokenizer_does_not_have(tmp_path):
    tokenizer = ByT5Tokenizer()
    last = max(tokenizer.get_vocab().values())
    settings = {"max_position_embeddings": 512, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    model = tiny.model(vocab_size=last + 5000, **settings)
    policy = Policy(model, tokenizer)
    check_drawn(torch.tensor([[0, last]]), policy)
    says = (
        rf"drew token {last + 1}, which the tokenizer does not have: its ids end at {last}, .*embeddings\({last + 1}\)"
    )
    with pytest.raises(ValueError, match=says):
        check_drawn(torch.tensor([[0, last + 1]]), policy)
