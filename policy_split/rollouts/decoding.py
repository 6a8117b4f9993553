"""Texts of responses: each different one is decoded once, as sharp policies write the same again and again."""

from collections.abc import Sequence
from typing import Any


def decoded(tokenizer: Any, ids: Sequence[Sequence[int]], *, skip_special_tokens: bool) -> list[str]:
    """tokenizer.batch_decode(ids, skip_special_tokens=skip_special_tokens)."""
    keys = [tuple(row) for row in ids]
    different = list(dict.fromkeys(keys))
    texts = tokenizer.batch_decode([list(key) for key in different], skip_special_tokens=skip_special_tokens)
    text_of = dict(zip(different, texts, strict=True))
    return [text_of[key] for key in keys]
