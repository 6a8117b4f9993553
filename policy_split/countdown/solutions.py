"""Every right answer to a problem: all expressions of its numbers at once, as arrays of numerators and denominators.

The expressions of n numbers have one order, whatever the numbers are: those of m of them are, for each size k of the
left operand, each choice of its k numbers among the m, and each operator, every left expression with every right one.
So an expression is a position, its value is computed without its text, and only right answers are written out.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]  # or of Python's integers, where 64 bits could be too few
OPERATORS = ("+", "-", "*", "/")  # in the order of `_combined`


class Values(NamedTuple):
    """numerators / denominators, not reduced; a denominator of 0: the expression divides by zero."""

    numerators: Integers  # (subsets, E)
    denominators: Integers  # (subsets, E)


class Cuts(NamedTuple):
    """For the subsets of m numbers, in the order of itertools.combinations, the operands of k and m - k numbers."""

    left: Integers  # (subsets of m, C(m, k)): which subset of k
    right: Integers  # (subsets of m, C(m, k)): which subset of m - k


def solutions(numbers: Iterable[int], target: int) -> list[str]:
    """Every right answer in reverse Polish notation, sorted, each token sequence once."""
    ordered = sorted(numbers)
    values, whole = _whole(ordered)
    places = np.flatnonzero(whole & (values == target)).tolist()
    return sorted({_text(ordered, len(ordered), 0, place) for place in places})  # equal numbers: the same text again


def answer_counts(numbers: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """(target, how many right answers it has) for each positive integer that the numbers can make, ascending."""
    return _answer_counts(tuple(sorted(numbers)))


@lru_cache(maxsize=65536)
def _answer_counts(numbers: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    values, whole = _whole(numbers)
    targets, times = np.unique(values[whole & (values > 0)], return_counts=True)
    # equal numbers that change places leave the text as it is: each stands there so many times
    copies = math.prod(math.factorial(numbers.count(number)) for number in set(numbers))
    return tuple(zip(targets.tolist(), (times // copies).tolist(), strict=True))


def _whole(numbers: Sequence[int]) -> tuple[Integers, NDArray[np.bool_]]:
    """The value of every expression of all numbers, and whether it is an integer, which the value then is: (E,)."""
    numerators, denominators = _expressions(np.array(numbers, _dtype(numbers)))
    there = denominators != 0
    safe = np.where(there, denominators, 1)
    return numerators // safe, there & (numerators % safe == 0)


def _dtype(numbers: Sequence[int]) -> type:
    """Python's integers where a numerator or denominator, at most 2 x left x right in each step, could overflow."""
    bound = 2 ** (len(numbers) - 1) * math.prod(max(abs(number), 1) for number in numbers)
    return np.int64 if bound < 2**62 else object


def _expressions(numbers: Integers) -> tuple[Integers, Integers]:
    """Numerator and denominator of each expression of all numbers: (n,) -> two of (E,)."""
    count = len(numbers)
    if count < 2:  # nothing to calculate
        return numbers[:0], numbers[:0]
    sizes = {1: Values(numbers[:, None], np.ones_like(numbers)[:, None])}
    for size in range(2, count + 1):
        parts = [_combined(sizes[part], sizes[size - part], _cuts(count, size, part)) for part in range(1, size)]
        sizes[size] = Values(*(np.concatenate(each, 1) for each in zip(*parts, strict=True)))
    return sizes[count].numerators[0], sizes[count].denominators[0]


def _combined(lefts: Values, rights: Values, cuts: Cuts) -> Values:
    """Every operator between every left and every right expression of each cut: (subsets, cuts x 4 x E_l x E_r)."""
    n, d = (x[cuts.left][..., :, None] for x in lefts)
    m, e = (x[cuts.right][..., None, :] for x in rights)
    ne, md, de = n * e, m * d, d * e
    numerators = np.stack(np.broadcast_arrays(ne + md, ne - md, n * m, ne), 2)
    # (n / d) / (m / e) = n e / (m d), and still no number where the right operand is none
    denominators = np.stack(np.broadcast_arrays(de, de, de, np.where(e == 0, 0, md)), 2)
    shape = (len(numerators), -1)
    return Values(numerators.reshape(shape), denominators.reshape(shape))


@lru_cache
def _cuts(count: int, size: int, part: int) -> Cuts:
    places = {k: {s: i for i, s in enumerate(itertools.combinations(range(count), k))} for k in (part, size - part)}
    left, right = [], []
    for subset in itertools.combinations(range(count), size):
        chosen = list(itertools.combinations(subset, part))
        left.append([places[part][each] for each in chosen])
        right.append([places[size - part][tuple(sorted(set(subset) - set(each)))] for each in chosen])
    return Cuts(np.array(left), np.array(right))


@lru_cache
def _how_many(size: int) -> int:
    """Expressions of so many different numbers: 1, 8, 192, 7680, 430080."""
    return 1 if size == 1 else sum(math.prod(_block(size, part)) for part in range(1, size))


def _block(size: int, part: int) -> tuple[int, int, int, int]:
    """Of the expressions of `size` numbers with `part` of them on the left: (cuts, operators, lefts, rights)."""
    return math.comb(size, part), len(OPERATORS), _how_many(part), _how_many(size - part)


def _text(numbers: Sequence[int], size: int, subset: int, place: int) -> str:
    """The expression at a place among those of a subset of the numbers."""
    if size == 1:
        return str(numbers[subset])
    part = 1
    while place >= (length := math.prod(_block(size, part))):
        place, part = place - length, part + 1
    cut, operator, left, right = map(int, np.unravel_index(place, _block(size, part)))
    cuts = _cuts(len(numbers), size, part)
    texts = (
        _text(numbers, part, int(cuts.left[subset, cut]), left),
        _text(numbers, size - part, int(cuts.right[subset, cut]), right),
    )
    return f"{' '.join(texts)} {OPERATORS[operator]}"
