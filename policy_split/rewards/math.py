"""Reward for mathematical answers, compared as mathematics by math-verify (extra `math`)."""

from collections.abc import Mapping, Sequence
from typing import Any

from policy_split.extras import import_extra


def math_reward(
    completions: Sequence[str | Sequence[Mapping[str, Any]]], answer: Sequence[Any], **columns: Any
) -> list[float]:
    """1.0 for each completion whose final answer equals that of its row's column `answer`, else 0.0.

    "1/2", "0.5" and "\\frac{1}{2}" are equal; a completion without an answer gets 0. Raises ImportError without
    math-verify.
    """
    math_verify = import_extra("math_verify", "math_reward")
    texts = [completion if isinstance(completion, str) else completion[-1]["content"] for completion in completions]

    def correct(text: str, gold: Any) -> bool:
        return bool(math_verify.verify(math_verify.parse(f"${gold}$"), math_verify.parse(text)))

    return [float(correct(text, gold)) for text, gold in zip(texts, answer, strict=True)]
