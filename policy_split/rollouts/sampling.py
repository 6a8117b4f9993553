"""Sampling: one response to each prompt, from the unfiltered distribution, under a seed of its own."""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from policy_split.config import PolicySplitConfig
from policy_split.models.policy import Policy
from policy_split.models.vocabulary import Vocabulary
from policy_split.progress import inner_bar

from .draws import Draw
from .prefill import prefilled, repeats_of


def sample(policy: Policy, prompts: Sequence[Sequence[int]], config: PolicySplitConfig) -> Tensor:
    """One response to each prompt at config.temperature, unfiltered: (R, T) ids, as generate pads them.

    The distribution is over the tokenizer's tokens, as it is in every score.
    """
    generation = GenerationConfig(
        do_sample=False,  # `Draw` draws
        max_new_tokens=config.max_completion_length,
        pad_token_id=policy.pad_id,
        eos_token_id=policy.end_ids,
        use_cache=True,
    )
    size = config.per_device_generation_batch_size or len(prompts)
    generate = cast(Callable[..., Tensor], policy.bare.generate)  # of GenerationMixin
    training = policy.bare.training
    policy.bare.eval()
    parts, draw = [], Draw(config.temperature)
    starts, longest = range(0, len(prompts), size), config.max_completion_length
    with (
        torch.no_grad(),
        _instead_of_defaults(policy.bare, generation),
        inner_bar(len(starts) * longest, "generation", " tokens") as bar,
    ):
        counter = None if bar.disable else StoppingCriteriaList([_TokenCounter(bar)])
        for number, start in enumerate(starts, 1):
            asked = prompts[start : start + size]
            repeats = repeats_of(asked) if policy.share else 1
            once = left_padded(asked[::repeats], policy)
            ids, mask = (x.repeat_interleave(repeats, 0) for x in once)
            options: dict[str, Any] = {"generation_config": generation, "stopping_criteria": counter}
            options["logits_processor"] = LogitsProcessorList([_Silence(policy.vocabulary), draw])
            out = generate(input_ids=ids, attention_mask=mask, **options, **prefilled(policy, *once, repeats))
            parts.append(out[:, ids.shape[1] :])
            bar.update(number * longest - bar.n)  # all may have ended before
    policy.bare.train(training)
    draw.check()
    width = max(part.shape[1] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1]), value=policy.pad_id) for part in parts])


def seed_of(*parts: Any) -> int:
    """A 63-bit seed that depends on every part: `seed_of(config.seed, "rollout", step)`."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


def until_end(completions: Tensor, policy: Policy) -> tuple[Tensor, list[int], Tensor]:
    """Cut to the longest response: (ids (R, T), lengths with the end of sequence, whether no end came)."""
    is_end = torch.isin(completions, torch.tensor(policy.end_ids, device=completions.device))
    ended = is_end.any(1)
    lengths = torch.where(ended, is_end.int().argmax(1) + 1, completions.shape[1]).tolist()
    return completions[:, : max(lengths)], lengths, ~ended


def left_padded(prompts: Sequence[Sequence[int]], policy: Policy) -> tuple[Tensor, Tensor]:
    """(ids, attention mask), both (R, L)."""
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    width = int(lengths.max())
    mask = torch.arange(width) >= width - lengths[:, None]
    ids = torch.full(mask.shape, policy.pad_id)
    ids[mask] = torch.tensor(list(itertools.chain.from_iterable(prompts)))
    return ids.to(policy.device), mask.long().to(policy.device)


class _Silence(LogitsProcessor):
    """What is no token is not drawn."""

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary = vocabulary

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self.vocabulary.silenced(scores)


class _TokenCounter(StoppingCriteria):
    """Stops nothing: called once for every token of a batch, it moves the bar, without asking the device anything."""

    def __init__(self, bar: tqdm):
        self.bar = bar

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        self.bar.update()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@contextmanager
def _instead_of_defaults(model: Any, generation: GenerationConfig) -> Iterator[None]:
    """generate fills what is not set from the model's own config: its top_k and penalties must not come in."""
    default, model.generation_config = model.generation_config, generation
    try:
        yield
    finally:
        model.generation_config = default


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
