"""Samples of a rollout: its texts, tokens and entropies, as the run folder keeps them."""

import json

import pytest
import tiny
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from policy_split.models.policy import Policy
from policy_split.rewards.functions import as_reward_functions
from policy_split.rollouts.rollout import make_rollout, score_rollout
from policy_split.rollouts.samples import sample_rows, token_texts


def rollout(tmp_path, **options):
    config, policy = tiny.config(tmp_path, **options), Policy(tiny.model(), tiny.tokenizer())
    functions = as_reward_functions(tiny.reward, None)
    made = make_rollout(policy, tiny.QUESTIONS[:2], functions, config, num_generations=3, seed=0)
    return made, policy, config


def test_sample_rows_are_the_rollout(tmp_path):
    made, policy, config = rollout(tmp_path)
    with pytest.raises(ValueError, match="score_rollout"):
        sample_rows(made, policy.tokenizer, 7, 2)
    score_rollout(policy, made, config)
    with pytest.raises(ValueError, match="limit=0"):
        sample_rows(made, policy.tokenizer, 7, 0)
    rows = sample_rows(made, policy.tokenizer, 7, 2)
    assert [row["mode"] for row in rows] == ["normal", "normal", "high_entropy", "high_entropy"]
    assert [row["prompt"] for row in rows] == ["1 2 3", "1 2 3", "explore 1 2 3", "explore 1 2 3"]
    for row, place in zip(rows, (0, 1, 6, 7), strict=True):
        length = made.completion_lengths[place]
        ids = made.completion_ids[place, :length].tolist()
        assert row.keys() == {"step", "mode", "prompt", "completion", "reward", "tokens", "entropy"}
        assert (row["step"], row["completion"]) == (7, made.texts[place])
        assert row["reward"] == made.rewards[place].item()
        assert "".join(row["tokens"]) == policy.tokenizer.decode(ids)
        assert len(row["tokens"]) == len(row["entropy"]) == length
        assert row["entropy"] == pytest.approx(made.entropy[place, :length].tolist(), abs=1e-4)
    assert len(sample_rows(made, policy.tokenizer, 7, 9)) == 6
    made.entropy[0, 0] = torch.nan
    assert json.dumps(sample_rows(made, policy.tokenizer, 7, 1), allow_nan=False)


def test_characters_of_several_tokens_stand_at_their_last(tmp_path):
    """One token per byte: each character of UTF-8 takes as many tokens as bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: place for place, letter in enumerate(alphabet)}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, clean_up_tokenization_spaces=False)
    ids = tokenizer.encode(" é x\u20ac\U0001f600")
    assert token_texts(tokenizer, ids) == [" ", "", "é", " ", "x", "", "", "\u20ac", "", "", "", "\U0001f600"]
    assert token_texts(tokenizer, ids[:-1])[-4:] == ["\u20ac", "", "", "\ufffd"]  # cut within a character
    assert token_texts(tokenizer, []) == []
    broken = [ids[-1]] * 9  # never a character: it is shown all the same, and soon
    assert token_texts(tokenizer, broken)[:4] == ["", "", "", "\ufffd" * 4]
