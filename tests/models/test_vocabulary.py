"""Ids that a model has an embedding for and its tokenizer no token: not drawn, not scored, not trained."""

import json

import pytest
import tiny
import torch
from lm_models import V, made
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from trained import lines
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from policy_split.evaluation.evaluate import evaluate_modes
from policy_split.models.batches import PaddedBatch
from policy_split.models.lm_head import patch_lm_head
from policy_split.models.policy import Policy, check_fit
from policy_split.models.vocabulary import Vocabulary, absent_ids
from policy_split.training.trainer import PolicySplitTrainer
from policy_split_kernels.linear import linear_logprobs_and_entropy

KNOWN = len(tiny.WORDS)  # of the V ids of lm_models


def byte_level():
    """As GPT-2's: 256 bytes and two special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(letters)}, merges=[]))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", pad_token="<pad>")


def with_hole():
    vocabulary = {word: n + (n > 10) for n, word in enumerate(tiny.WORDS)}  # nothing is 11
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


class Lossy:
    """Two ids of one text, of which a vocabulary by text has the last, as Mistral's own tokenizers."""

    unk_token, unk_token_id = "<unk>", 0

    def __len__(self):
        return 4

    def get_vocab(self):
        return {"<unk>": 0, "?": 3}

    def convert_ids_to_tokens(self, number):
        return ["<unk>", "?", "<unk>", "?"][number]  # 2 is unknown, and it says so by its unknown token


TOKENIZERS = {"fast": tiny.tokenizer, "slow": ByT5Tokenizer, "byte level": byte_level, "hole": with_hole}


@pytest.mark.parametrize(
    ("make", "count", "absent"),
    [
        (tiny.tokenizer, 30, [26, 27, 28, 29]),
        (tiny.tokenizer, 26, []),
        (byte_level, 260, [258, 259]),
        (ByT5Tokenizer, 387, [384, 385, 386]),
        (with_hole, 29, [11, 27, 28]),
        (Lossy, 6, [2, 4, 5]),
    ],
    ids=["fast", "none", "byte-level", "slow", "hole", "two-ids-of-a-text"],
)
def test_which_they_are(make, count, absent):
    tokenizer = make()
    assert absent_ids(tokenizer, count) == absent
    keep = Vocabulary(tokenizer).keep_mask(count, torch.device("cpu"))
    assert (keep is None) == (not absent)
    if absent:
        assert (~keep).nonzero()[:, 0].tolist() == absent


def test_a_token_that_is_added_later_is_one():
    tokenizer = tiny.tokenizer()
    assert absent_ids(tokenizer, 28) == [26, 27]
    tokenizer.add_tokens(["<think>"])
    assert absent_ids(tokenizer, 28) == [27]


def batch_of(policy, prompt=4, response=5):
    torch.manual_seed(1)
    ids = torch.randint(0, KNOWN, (3, prompt)), torch.randint(0, KNOWN, (3, response))
    return PaddedBatch([0, 1, 2], *ids, [prompt] * 3, [response] * 3), ids[1]


@pytest.mark.parametrize("kind", ["llama", "qwen3 tied", "gemma2", "cohere", "granite"])
def test_scores_and_gradients_are_those_of_the_tokens_alone(kind):
    """Of logits and of the LM head, with softcap and factors: softmax over the ids that the tokenizer has."""
    models_of = [made(kind).double() for _ in range(3)]
    plain, by_logits, by_head = models_of
    policies = [Policy(by_logits, tiny.tokenizer()), Policy(patch_lm_head(by_head), tiny.tokenizer(), fused=True)]
    batch, targets = batch_of(policies[0])
    logits = batch.predictions(plain(**policies[0]._inputs(batch)).logits)[..., :KNOWN]
    log_p = torch.log_softmax(logits, -1)
    truth = log_p.gather(-1, targets[..., None])[..., 0], -(log_p.exp() * log_p).sum(-1)
    assert logits.shape[-1] < V
    silenced = policies[0].completion_logits(batch)
    assert torch.equal(silenced[..., :KNOWN], logits)
    assert silenced[..., KNOWN:].eq(-torch.inf).all()
    of_logits = torch.log_softmax(silenced, -1)
    found = of_logits.gather(-1, targets[..., None])[..., 0], -(of_logits.exp() * of_logits.clamp(min=-1e9)).sum(-1)
    fused = policies[1].completion_head(
        batch, lambda hidden, weight, **more: linear_logprobs_and_entropy(hidden, weight, targets, **more)
    )
    gradients = []
    for model, (logprobs, entropy) in zip(models_of, (truth, found, fused), strict=True):
        torch.testing.assert_close(logprobs, truth[0], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(entropy, truth[1], rtol=1e-9, atol=1e-9)
        (logprobs.sum() + 0.3 * entropy.sum()).backward()
        gradients.append({name: each.grad for name, each in model.named_parameters() if each.grad is not None})
    for other in gradients[1:]:
        assert other.keys() == gradients[0].keys()
        for name, gradient in other.items():
            torch.testing.assert_close(gradient, gradients[0][name], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("chunk_bytes", [None, 200])
def test_one_row_of_a_mask_is_that_row_for_every_token(chunk_bytes):
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(7, 4), torch.randn(13, 4), torch.arange(7)
    keep = torch.ones(13, dtype=torch.bool)
    keep[[9, 12]] = False
    one, all_ = (
        linear_logprobs_and_entropy(hidden, weight, targets, keep_mask=mask, chunk_bytes=chunk_bytes)
        for mask in (keep, keep.expand(7, 13).contiguous())
    )
    log_p = torch.log_softmax((hidden @ weight.T).masked_fill(~keep, -torch.inf), -1)
    for x, y in zip(one, all_, strict=True):
        assert torch.equal(x, y)
    torch.testing.assert_close(one.logprobs, log_p.gather(1, targets[:, None])[:, 0])


def model_of(tokenizer, more=7):
    settings = {"max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": None}
    count = max(tokenizer.get_vocab().values()) + 1 + more
    return tiny.model(vocab_size=count, eos_token_id=tokenizer.eos_token_id, scale=1.0, **settings)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize(
    "options",
    [{}, {"regularizer": "loss", "beta": 0.1}, {"fused_lm_head": False, "score_with_update": "off"}],
    ids=["fused", "exact-loss-and-reference", "logits"],
)
def test_a_run_draws_and_trains_tokens_alone(tmp_path, name, options):
    tokenizer = TOKENIZERS[name]()
    model, seen = model_of(tokenizer), []
    absent = absent_ids(tokenizer, model.config.vocab_size)
    before = model.lm_head.weight.detach()[absent].clone()

    def reward(completions, completion_ids, **columns):
        seen.extend(token for ids in completion_ids for token in ids)
        return [float(len(set(ids))) for ids in completion_ids]

    options = {"high_entropy_prompt": "1 2", "max_completion_length": 8, "log_exact_kl": True, "max_steps": 1} | options
    questions = [{"prompt": "3"}, {"prompt": "4 5"}]
    config = tiny.config(tmp_path, num_iterations=2, prompts_per_step=2, **options)
    run = PolicySplitTrainer(model, tokenizer, reward, questions, config)
    metrics = run.train()
    assert absent
    assert len(seen) > 60
    assert not set(seen) & set(absent)
    assert torch.equal(model.lm_head.weight.detach()[absent], before)  # no gradient reached them
    assert all(torch.isfinite(torch.tensor(value)) for value in metrics.values())
    entropy = lines(tmp_path)[0]["normal/entropy"]
    assert entropy <= torch.log(torch.tensor(float(model.config.vocab_size - len(absent)))) + 1e-4


def test_most_of_a_models_ids_may_be_none(tmp_path):
    """Sampling is from the distribution that is scored: the share of each token, against its probability."""
    model, tokenizer = model_of(tiny.tokenizer(), more=2000), tiny.tokenizer()
    draws = []

    def reward(completions, completion_ids, **columns):
        draws.extend(ids[0] for ids in completion_ids[: len(completion_ids) // 2])  # of the normal mode
        return [0.0] * len(completions)

    options = {"num_generations": 2000, "max_completion_length": 1, "prompts_per_step": 1, "max_steps": 1}
    run = PolicySplitTrainer(model, tokenizer, reward, [{"prompt": "1 2 3"}], tiny.config(tmp_path, **options))
    with torch.no_grad():
        ids = torch.tensor([tokenizer.encode("1 2 3")])
        share = model(input_ids=ids).logits[0, -1, :KNOWN].softmax(-1)
    run.sample()
    found = torch.bincount(torch.tensor(draws), minlength=KNOWN)
    assert len(found) == KNOWN
    assert (found / 2000 - share).abs().max() < 0.04
    assert float(share.min()) > 0.005  # of tokens that would share 1 % of all draws


def test_evaluation_asks_and_scores_tokens_alone(tmp_path):
    tokenizer = ByT5Tokenizer()
    options = {"max_completion_length": 8, "high_entropy_prompt": "1 2"}
    reward = lambda completions, **columns: [1.0] * len(completions)  # noqa: E731
    questions = [{"prompt": "3"}]
    model = model_of(tokenizer, more=4000)
    result = evaluate_modes(model, tokenizer, questions, reward, tiny.config(tmp_path, **options), 4)
    assert 0 < result["normal"]["entropy"] <= torch.log(torch.tensor(384.0))
    json.dumps(result)


def test_ends_that_the_tokenizer_does_not_have():
    model = tiny.model(vocab_size=40)
    model.generation_config.eos_token_id = [2, 33]
    with pytest.warns(UserWarning, match=r"ends responses by \[33\] as well, which the tokenizer does not have: they"):
        check_fit(model, tiny.tokenizer(), 4, 4)
    assert Policy(model, tiny.tokenizer()).end_ids == [2]
    model.generation_config.eos_token_id = 33
    endless = tiny.tokenizer()
    endless.eos_token = None
    with pytest.raises(ValueError, match=r"has an eos token but \[33\], which the tokenizer does not have; responses"):
        check_fit(model, endless, 4, 4)
