"""Tokens that a model can draw and its tokenizer has no text for: padded vocabularies have some."""

import functools
from typing import Any

from torch import Tensor

from policy_split.models.policy import Policy, input_embeddings


def check_drawn(ids: Tensor, policy: Policy) -> None:
    """ValueError for a token that the model has an embedding for, and a slow tokenizer no text."""
    if getattr(policy.tokenizer, "is_fast", False):  # those decode what they do not know to nothing
        return
    last, drawn = last_id(policy.tokenizer), int(ids.max()) if ids.numel() else 0
    if drawn > last:
        count = input_embeddings(policy.bare).num_embeddings
        raise ValueError(
            f"the model drew token {drawn}, which the tokenizer does not have: its ids end at {last}, the model has "
            f"{count} embeddings; cut them by model.resize_token_embeddings({last + 1})"
        )


@functools.lru_cache(maxsize=4)
def last_id(tokenizer: Any) -> int:
    """The largest token id that the tokenizer has."""
    last: int = max(tokenizer.get_vocab().values())
    return last
