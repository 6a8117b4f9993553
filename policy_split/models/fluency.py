"""How probable a text is to a model that was asked for nothing but a sentence: mean log-probs in nats per token."""

from collections.abc import Sequence
from typing import Any

import torch

from policy_split_kernels.logprobs import logprobs_and_entropy

from .batches import Batch, PaddedBatch
from .policy import Policy
from .shared_prompts import SharedPromptBatch

QUESTION = "Write one short sentence."
ROWS = 32  # of a forward


def context_of(tokenizer: Any, question: str = QUESTION) -> list[int]:
    """The question as a chat prompt; without a chat template the token that begins a text, or else ends one."""
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": question}]
        rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
        return list(rendered["input_ids"])
    return [tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id]


@torch.no_grad()
def mean_logprobs(policy: Policy, texts: Sequence[str]) -> list[float]:
    """Of each text's tokens and the end behind them, after `context_of`; -inf for a text without tokens."""
    context, end = context_of(policy.tokenizer), policy.tokenizer.eos_token_id
    tokens = [policy.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    means = [-torch.inf] * len(texts)
    order = sorted((n for n in range(len(texts)) if tokens[n]), key=lambda n: len(tokens[n]))
    for start in range(0, len(order), ROWS):
        numbers = order[start : start + ROWS]
        for number, mean in zip(numbers, _means(policy, context, [[*tokens[n], end] for n in numbers]), strict=True):
            means[number] = mean
    return means


def _means(policy: Policy, context: list[int], texts: list[list[int]]) -> list[float]:
    lengths, longest = [len(text) for text in texts], max(map(len, texts))
    ids = torch.tensor([text + [policy.pad_id] * (longest - len(text)) for text in texts], device=policy.device)
    mask = torch.arange(longest, device=policy.device) < torch.tensor(lengths, device=policy.device)[:, None]
    prompts = torch.tensor([context] * len(texts), device=policy.device)
    arguments = (range(len(texts)), prompts, ids, [len(context)] * len(texts), lengths)
    batch: Batch = SharedPromptBatch(*arguments, [0] * len(texts)) if policy.share else PaddedBatch(*arguments)
    logits = policy.completion_logits(batch)
    values = batch.scatter(logprobs_and_entropy(logits, batch.gather(ids), mask=batch.gather(mask)).logprobs)
    means: list[float] = (values.double().sum(1) / mask.sum(1)).tolist()
    return means
