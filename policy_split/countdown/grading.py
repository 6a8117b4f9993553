"""What is right and what is different: the reward, and the key by which answers are counted."""

from collections.abc import Sequence
from typing import Any

from .expressions import PRECEDENCE, evaluate


def is_correct(completion: str, numbers: Sequence[int], target: int) -> bool:
    """Whether the text is an expression (infix or postfix) that uses exactly these numbers and equals the target."""
    evaluation = evaluate(completion)
    return evaluation is not None and evaluation.value == target and sorted(evaluation.numbers) == sorted(numbers)


def canonical(completion: str, *, ignore_order: bool = False) -> str | None:
    """The key by which different answers are counted, or None for a text that is no expression.

    The expression as written, in postfix: spaces, needless parentheses, leading zeros and the choice of notation do not
    count, but "3 5 +" and "5 3 +" do count as two. A model must give probability to each of them separately, so this is
    what the diversity of sampling is about. `ignore_order=True` sorts the operands of each + and *: the two become one.
    """
    evaluation = evaluate(completion)
    if evaluation is None:
        return None
    if not ignore_order:
        return evaluation.canonical
    stack: list[str] = []
    for token in evaluation.postfix:
        if token in PRECEDENCE:
            operands = [stack.pop(-2), stack.pop()]
            token = " ".join([*(sorted(operands) if token in "+*" else operands), token])
        stack.append(token)
    return stack[0]


def countdown_reward(
    prompts: Sequence[str],
    completions: Sequence[str],
    numbers: Sequence[Sequence[int]],
    target: Sequence[int],
    **columns: Any,
) -> list[float]:
    """1.0 for each completion (text without special tokens) that is a right answer to its row, else 0.0.

    Raises ValueError if the columns differ in length.
    """
    graded: dict[tuple[Any, ...], float] = {}  # sharp policies write the same answer again and again
    rewards = []
    for completion, given, wanted in zip(completions, numbers, target, strict=True):
        key = (completion, wanted, *given)
        if key not in graded:
            graded[key] = float(is_correct(completion, given, wanted))
        rewards.append(graded[key])
    return rewards
