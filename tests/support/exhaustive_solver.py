"""The slow solver, kept as the reference of the fast one: every expression built as a text, values as fractions."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import lru_cache

from policy_split.countdown.expressions import PRECEDENCE, Number, apply


def solutions(numbers: Iterable[int], target: int) -> list[str]:
    """Every right answer in reverse Polish notation, sorted, each token sequence once."""
    found = (
        f"{left} {right} {operator}"
        for value, lefts, rights, operator in _last_steps(tuple(sorted(numbers)))
        if value == target
        for left, right in itertools.product(lefts, rights)
    )
    return sorted(found)


def answer_counts(numbers: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """(target, how many right answers it has) for each positive integer that the numbers can make, ascending."""
    return _answer_counts(tuple(sorted(numbers)))


@lru_cache(maxsize=65536)
def _answer_counts(numbers: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    counts: Counter[int] = Counter()
    for value, lefts, rights, _ in _last_steps(numbers):
        if value.denominator == 1 and value > 0:
            counts[int(value)] += len(lefts) * len(rights)
    return tuple(sorted(counts.items()))


@lru_cache(maxsize=1024)
def _expressions(numbers: tuple[int, ...]) -> dict[Number, list[str]]:
    """Every value that the sorted numbers make, with every expression that makes it."""
    if len(numbers) == 1:
        return {Fraction(numbers[0]): [str(numbers[0])]}
    table: dict[Number, list[str]] = {}
    for value, lefts, rights, operator in _last_steps(numbers):
        table.setdefault(value, []).extend(f"{left} {right} {operator}" for left in lefts for right in rights)
    return table


def _last_steps(numbers: tuple[int, ...]) -> Iterator[tuple[Number, list[str], list[str], str]]:
    """All ways to make the last step: (value, expressions of the left operand, of the right operand, operator).

    A postfix text has one last operator and one way to cut the rest in two, and each cut of the multiset comes once
    here: no expression is listed twice.
    """
    for size in range(1, len(numbers)):
        for left in sorted(set(itertools.combinations(numbers, size))):
            right = list(numbers)
            for number in left:
                right.remove(number)
            pairs = itertools.product(_expressions(left).items(), _expressions(tuple(right)).items())
            for (left_value, lefts), (right_value, rights) in pairs:
                for operator in PRECEDENCE:
                    value = apply(operator, left_value, right_value)
                    if value is not None:
                        yield value, lefts, rights, operator
