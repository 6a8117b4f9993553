"""Answers of some modes to one prompt, ungraded, each token with its entropy: for people who ask a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from policy_split.config import PolicySplitConfig
from policy_split.messages import Prompt
from policy_split.models.batches import PaddedBatch
from policy_split.models.policy import Policy
from policy_split.modes import MODES, encode_modes, encode_prompt
from policy_split_kernels.logprobs import logprobs_and_entropy

from .samples import token_texts
from .sampling import left_padded, sample, seed_of, seeded, until_end


@dataclass
class Answer:
    """tokens: the text of each, special ones among them; entropy: nats, of the distribution each was drawn from."""

    text: str
    tokens: list[str]
    entropy: list[float]
    truncated: bool


def prompts_of(tokenizer: Any, prompt: Prompt, config: PolicySplitConfig, modes: Sequence[int]) -> list[list[int]]:
    """Token ids of the prompt in each of the modes; ValueError where both are asked and read the same."""
    if set(modes) == set(MODES):
        both = encode_modes(tokenizer, prompt, config, "--prompt")
        return [both[mode] for mode in modes]
    options = (config.template_kwargs,)
    place = config.high_entropy_place
    return [encode_prompt(tokenizer, prompt, config.system_prompts[mode], *options, place=place) for mode in modes]


def answers(
    policy: Policy, prompts: Sequence[Sequence[int]], config: PolicySplitConfig, num_samples: int
) -> list[list[Answer]]:
    """`num_samples` answers to each prompt: a function of the model, the prompts and config.seed.

    ValueError for a model that reads the padding, where the prompts differ in length.
    """
    if len(set(map(len, prompts))) > 1:
        policy.check_padding()
    repeated = [list(ids) for ids in prompts for _ in range(num_samples)]
    with seeded(seed_of(config.seed, "answers"), policy.device):
        completions = sample(policy, repeated, config)
    ids, lengths, truncated = until_end(completions, policy)
    rows = [row[:length] for row, length in zip(ids.tolist(), lengths, strict=True)]
    texts = policy.tokenizer.batch_decode(rows, skip_special_tokens=True)
    entropies = _entropies(policy, repeated, ids, lengths, config.temperature)
    found = [
        Answer(text, token_texts(policy.tokenizer, row), entropy, cut)
        for text, row, entropy, cut in zip(texts, rows, entropies, truncated.tolist(), strict=True)
    ]
    return [found[start : start + num_samples] for start in range(0, len(found), num_samples)]


@torch.no_grad()
def _entropies(
    policy: Policy, prompts: Sequence[Sequence[int]], ids: Tensor, lengths: Sequence[int], temperature: float
) -> list[list[float]]:
    prompt_ids, _ = left_padded(prompts, policy)
    prompt_lengths = [len(prompt) for prompt in prompts]
    found = []
    for row in range(len(prompts)):  # the logits of one at a time are in memory
        batch = PaddedBatch([row], prompt_ids, ids, prompt_lengths, list(lengths))
        logits = policy.completion_logits(batch)
        found.append(logprobs_and_entropy(logits, batch.gather(ids), temperature=temperature).entropy[0].tolist())
    return found
