"""Models in TRL's trainer: those that read the padding are refused, and no id without a token is drawn or scored."""

import pytest
import tiny
import torch
import transformers
from transformers import ByT5Tokenizer
from trl_runs import batch_of, trainer

pytest.importorskip("trl", reason="trl is not installed", exc_type=ImportError)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:trl"),
]
KNOWN = len(tiny.WORDS)


def rwkv():
    torch.manual_seed(0)
    sizes = {"vocab_size": 26, "hidden_size": 16, "attention_hidden_size": 16, "intermediate_size": 32}
    return transformers.RwkvForCausalLM(
        transformers.RwkvConfig(**sizes, num_hidden_layers=2, bos_token_id=1, eos_token_id=2)
    )


def test_a_model_that_reads_the_padding_is_refused(tmp_path):
    with pytest.raises(ValueError, match="RwkvForCausalLM does not honour its attention mask: a longer prompt beside"):
        trainer(tmp_path, model=rwkv())


@pytest.mark.parametrize("make", [tiny.tokenizer, ByT5Tokenizer], ids=["fast", "slow"])
def test_ids_without_a_token_have_no_probability(tmp_path, make):
    """Drawn by transformers' generation and scored by our head: a softmax over the tokens alone."""
    tokenizer, questions = make(), [{"prompt": text, "wanted": "a"} for text in ("1 2 3", "4")]
    count = max(tokenizer.get_vocab().values()) + 1
    special = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    model = tiny.model(vocab_size=count + 900, max_position_embeddings=128, scale=1.0, **special)
    options = {"per_device_train_batch_size": 16, "generation_kwargs": {"suppress_tokens": [5]}}
    run = trainer(tmp_path, model=model, tokenizer=tokenizer, questions=questions, **options)
    seen, scores = [], run._scores
    run._scores = lambda model, rows: seen.append(scores(model, rows)) or seen[-1]
    batch = batch_of(run)
    ids, mask = batch["completion_ids"], batch["completion_mask"].bool()
    assert mask.sum() > 60
    assert not (ids[mask] >= count).any()
    assert not (ids[mask] == 5).any()  # the user's own stays
    inputs = torch.cat((batch["prompt_ids"], ids), 1), torch.cat((batch["prompt_mask"], mask), 1)
    with torch.no_grad():
        logits = run.model(inputs[0], attention_mask=inputs[1]).logits[:, -ids.shape[1] - 1 : -1, :count]
    log_p = torch.log_softmax(logits, -1)
    logprobs, entropy = (torch.cat(x) for x in zip(*seen, strict=True))
    torch.testing.assert_close(logprobs[mask], log_p.gather(-1, ids[..., None])[..., 0][mask], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(entropy[mask], -(log_p.exp() * log_p).sum(-1)[mask], rtol=1e-4, atol=1e-4)
    before = model.lm_head.weight.detach()[count:].clone()
    run.train()
    assert torch.equal(run.model.lm_head.weight.detach()[count:], before)


def test_a_tokenizer_that_cannot_decode_them_is_refused_where_they_could_be_drawn(tmp_path):
    tokenizer = ByT5Tokenizer()
    last = max(tokenizer.get_vocab().values())
    model = tiny.model(vocab_size=last + 5000, max_position_embeddings=128, pad_token_id=0, eos_token_id=1)
    says = rf"4999 embeddings that the tokenizer has no token for, such as {last + 1}, and it cannot decode them"
    with pytest.raises(ValueError, match=says):
        trainer(tmp_path, model=model, tokenizer=tokenizer, fused_kernels=False)


def test_a_tokenizer_that_decodes_them_to_nothing_is_trls_own_matter_there(tmp_path):
    """Sampling and scores are then both over all ids."""
    run = trainer(tmp_path, model=tiny.model(vocab_size=200, scale=1.0), fused_kernels=False)
    assert run.generation_config.suppress_tokens is None
    assert (batch_of(run)["completion_ids"] >= KNOWN).any()
