"""How many different problems there are, the order of the numbers aside: of a task's splits and of rows."""

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from .problems import SPLITS, Countdown, Problem, targets_of

EXACT = 25_000  # sets of numbers that are all looked at; of more, so many spread over all of them stand for the others


class Pool(NamedTuple):
    """Different problems of each split; `exact` is False where they were counted on a sample and scaled."""

    problems: dict[str, int]
    exact: bool


def different(problems: Iterable[Problem]) -> int:
    return len({problem.ordered for problem in problems})


def pool_of(task: Countdown, *, exact_up_to: int = EXACT) -> Pool:
    """Different problems of each of SPLITS: every set of numbers is tried, or every so-many-th and the count scaled."""
    sets = math.comb(task.largest + task.numbers - 1, task.numbers)
    step = math.ceil(sets / exact_up_to)
    counts, looked_at = dict.fromkeys(SPLITS, 0), 0
    for numbers in _every(task, step):
        looked_at += 1
        for split in SPLITS:
            counts[split] += len(targets_of(task, numbers, split)[0])
    return Pool({split: round(count * sets / looked_at) for split, count in counts.items()}, step == 1)


def _every(task: Countdown, step: int) -> Iterator[tuple[int, ...]]:
    return itertools.islice(
        itertools.combinations_with_replacement(range(1, task.largest + 1), task.numbers), 0, None, step
    )
