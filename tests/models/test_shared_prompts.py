"""Rows behind one copy of their prompt: the numbers of padded rows, fewer tokens, and models that cannot."""

import json

import pytest
import tiny
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_models import GPT2, SIZES, V
from trained import trainer, weights

from policy_split.models import shared_prompts
from policy_split.models.batches import PaddedBatch
from policy_split.models.policy import Policy
from policy_split.models.prompt_attention import use_former_attention, use_prompt_attention
from policy_split.models.shared_prompts import SharedPromptBatch

# float64 throughout: the families with an RMS norm compute it in float32
SMALL_GPT2 = GPT2 | {"vocab_size": len(tiny.WORDS), "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2}


def gpt2(**options):
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**SMALL_GPT2 | options)).double().eval()


def table_of(batch, values):
    """(B, T, V) of what a batch predicts."""
    return torch.stack([batch.scatter(values[..., v]) for v in range(values.shape[-1])], -1)


def gradients(model, batch, mask):
    logits = table_of(batch, batch.predictions(model(use_cache=False, **batch.inputs).logits))
    model.zero_grad()
    (logits.log_softmax(-1)[..., 3] * mask).sum().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_logits_and_gradients_are_those_of_padded_rows(data):
    prompts = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3), label="prompt lengths")
    owner = data.draw(st.lists(st.integers(0, len(prompts) - 1), min_size=1, max_size=6), label="prompt of each row")
    lengths = data.draw(st.lists(st.integers(1, 5), min_size=len(owner), max_size=len(owner)), label="responses")
    rows = data.draw(st.permutations(range(len(owner))), label="order")
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 100), label="seed"))
    ids = torch.randint(3, 20, (len(prompts), 6), generator=generator)
    arguments = (rows, ids[owner], torch.randint(3, 20, (len(owner), 5), generator=generator))
    arguments += ([prompts[g] for g in owner], lengths)
    padded = PaddedBatch(*arguments)
    with pytest.MonkeyPatch.context() as chosen:  # the one form of attention and the other
        chosen.setattr(
            shared_prompts, "REPEATED", data.draw(st.sampled_from([0, 1e9]), label="price of a repeated one")
        )
        shared = SharedPromptBatch(*arguments, owner)
    mask = torch.arange(padded.length) < torch.tensor([[lengths[row]] for row in rows])
    model = gpt2()
    expected, of_padded = gradients(model, padded, mask)
    assert use_prompt_attention(model) is None
    found, of_shared = gradients(model, shared, mask)
    used = set(owner)
    assert shared.inputs["input_ids"].shape == (1, sum(prompts[g] for g in used) + sum(lengths) - len(lengths))
    torch.testing.assert_close(found[mask], expected[mask], rtol=0, atol=1e-12)
    for name, gradient in of_padded.items():
        torch.testing.assert_close(of_shared[name], gradient, rtol=1e-10, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("kind", ["Llama", "Qwen3", "Cohere", "OPT"])
def test_families(kind):
    """Grouped heads, norms of queries and keys, parallel layers, learned positions."""
    own = {"ffn_dim": 24, "word_embed_proj_dim": 16, "max_position_embeddings": 64} if kind == "OPT" else {}
    torch.manual_seed(0)
    made = getattr(transformers, f"{kind}Config")(**SIZES | own)
    model = getattr(transformers, f"{kind}ForCausalLM")(made).eval()
    arguments = ([0, 1, 2], torch.randint(3, V, (1, 4)).expand(3, 4), torch.randint(3, V, (3, 3)), [4] * 3, [3, 1, 2])
    padded, shared = PaddedBatch(*arguments), SharedPromptBatch(*arguments, [0] * 3)
    mask = torch.arange(3) < torch.tensor([[3], [1], [2]])
    expected, _ = gradients(model, padded, mask)
    assert use_prompt_attention(model) is None
    found, _ = gradients(model, shared, mask)
    torch.testing.assert_close(found[mask], expected[mask], rtol=1e-4, atol=1e-5)
    use_former_attention(model)
    torch.testing.assert_close(gradients(model, padded, mask)[0], expected, rtol=0, atol=0)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"per_device_train_batch_size": 7, "score_with_update": "off"},
        {"algorithm": "grpo"},
        {"fused_lm_head": False, "log_exact_kl": True},
        {"regularizer": "loss", "eta": 0.5},
        {"gradient_checkpointing": True},
        {"beta": 0.1, "num_iterations": 2},
    ],
    ids=lambda options: "-".join(options) or "defaults",
)
def test_one_trainer_with_and_without(tmp_path, options):
    results = []
    for share in (True, False):
        options = {"eta": 0.3, "clamp": "code", "adam_epsilon": 1e-3} | options
        run = trainer(tmp_path / str(share), model=gpt2(), share_prompts=share, **options)
        seen = []
        run.policy.bare.transformer.wte.register_forward_hook(lambda m, i, out, seen=seen: seen.append(i[0].numel()))
        metrics = run.train()
        results.append((weights(run), metrics, sum(seen)))
    (shared, metrics, tokens), (plain, expected, all_tokens) = results
    assert tokens < all_tokens
    for name, value in plain.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
    for name in ("normal/entropy", "policy_split/kl_high_normal", "grad_norm"):
        assert metrics.get(name, 0) == pytest.approx(expected.get(name, 0), rel=1e-5)


def other(kind, **options):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SIZES | {"vocab_size": len(tiny.WORDS)} | options)
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (lambda: other("Mistral", sliding_window=4), "asks for sliding_window"),
        (lambda: other("Mamba", state_size=4), "its forward takes no|its attention"),
        (lambda: other("Llama", attn_implementation="eager"), "its attention is 'eager'"),
    ],
    ids=["sliding window", "no attention", "eager"],
)
def test_models_that_cannot(model, says):
    made = model()
    policy = Policy(made, tiny.tokenizer(), share=None)
    assert not policy.share
    assert "shared" not in str(made.config._attn_implementation)
    with pytest.raises(
        ValueError, match=rf"share_prompts=True: {type(made).__name__} cannot share prompts: .*({says})"
    ):
        Policy(made, tiny.tokenizer(), share=True)


def test_the_saved_model_knows_nothing_of_it(tmp_path):
    run = trainer(tmp_path, max_steps=1)
    assert run.policy.share
    run.train()
    assert "shared_prompts" not in (tmp_path / "config.json").read_text()
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "qwen3"
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config._attn_implementation == "sdpa"


def test_two_layouts_exclude_each_other(tmp_path):
    with pytest.raises(ValueError, match="share_prompts=True and packed_batches=True are two layouts"):
        tiny.config(tmp_path, share_prompts=True, packed_batches=True)
    assert not trainer(tmp_path, packed_batches=True).policy.share


@pytest.mark.parametrize(("prompt", "response", "masked"), [(10, 20, True), (10, 40, False)])
def test_attention_has_a_mask_only_where_that_is_cheaper(prompt, response, masked):
    """Of n responses to a prompt, T (L + T) n pairs against 1.5 n (L + T)^2 / 2, those of the prompt aside."""
    ids = torch.zeros(8, prompt).long(), torch.zeros(8, response).long()
    batch = SharedPromptBatch(list(range(8)), *ids, [prompt] * 8, [response] * 8, [0] * 8)
    masks = [reading.mask for reading in batch.inputs["shared_prompts"].readings]
    assert [mask is not None for mask in masks] == ([False, True] if masked else [False])
