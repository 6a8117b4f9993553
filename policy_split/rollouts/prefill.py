"""A prompt's cache, computed once and expanded to all of its responses, where the model's cache can be."""

import inspect
import itertools
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import DynamicCache

from policy_split.models.policy import Policy


def repeats_of(prompts: Sequence[Sequence[int]]) -> int:
    """How often each prompt stands behind itself, if that is the same for all of them; else 1."""
    counts = {len(list(same)) for _, same in itertools.groupby(prompts, key=tuple)}
    return counts.pop() if len(counts) == 1 else 1


def prefilled(policy: Policy, ids: Tensor, mask: Tensor, repeats: int) -> dict[str, Any]:
    """An argument of generate: the cache of all but the last token of prompts (P, L), each for `repeats` rows of its
    own; nothing where a prompt is a single token, or the cache holds more than keys and values of attention."""
    ids, mask = ids[:, :-1], mask[:, :-1]
    if repeats == 1 or ids.shape[1] == 0:
        return {}
    parameters = inspect.signature(type(policy.bare).forward).parameters
    name = next((name for name in ("cache", "past_key_values") if name in parameters), None)  # from 5.24 on, before
    if name is None or "position_ids" not in parameters:
        return {}
    cache = DynamicCache(config=policy.bare.config)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    arguments = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, name: cache}
    policy.bare(**arguments, use_cache=True, logits_to_keep=1)
    cache.batch_repeat_interleave(repeats)
    return {name: cache}
