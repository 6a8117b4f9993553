"""Countdown, the built-in task: reach a target from given numbers, each used exactly once, with + - * /.

One text column, "3 5 2 = 16 :"; an answer is an expression, "3 5 + 2 *". A problem has several right answers: that
makes exploration measurable.
"""

import hashlib
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

from datasets import Dataset

from .solutions import answer_counts, solutions

SPLITS = ("train", "held_out", "test")


class Problem(NamedTuple):
    """Numbers in the order in which they are shown, and the target."""

    numbers: tuple[int, ...]
    target: int

    @property
    def prompt(self) -> str:
        """The question as the model reads it."""
        return f"{' '.join(map(str, self.numbers))} = {self.target} :"

    @property
    def ordered(self) -> "Problem":
        """The same problem with its numbers ascending: the problem itself, whatever the order in which it is shown."""
        return Problem(tuple(sorted(self.numbers)), self.target)


@dataclass(frozen=True)
class Countdown:
    """A difficulty: how many numbers, each in 1..largest, targets in 1..largest_target, and how many right answers.

    `fewest_answers`: diversity shows only where several answers are right. With the defaults there are 941 problems of
    four answers or more (8.5 on average), 187 of them held out, and 612 of fewer.

    A problem is its multiset of numbers and its target. A hash of it, not a seed, decides to which of SPLITS it
    belongs: no training row of any count, seed or difficulty is ever a held-out problem, and with `test_share` above 0
    a third split remains that neither training nor the choice of settings has seen. `each_once`: rows are different
    problems; without it, the same may come in several orders of its numbers. Raises ValueError for bad settings.
    """

    numbers: int = 3
    largest: int = 9
    largest_target: int = 30
    fewest_answers: int = 4
    held_out_share: float = 0.2
    test_share: float = 0.0
    each_once: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.numbers <= 5:
            raise ValueError(f"Countdown takes 2 to 5 numbers, not {self.numbers}: the solver is exhaustive")
        if self.largest < 1 or self.largest_target < 1:
            raise ValueError(f"largest={self.largest} and largest_target={self.largest_target} must be at least 1")
        if self.fewest_answers < 1:
            raise ValueError(f"fewest_answers={self.fewest_answers} must be at least 1: every problem is solvable")
        if not 0 < self.held_out_share < 1:
            raise ValueError(f"held_out_share={self.held_out_share} must lie between 0 and 1")
        if not 0 <= self.test_share < 1 - self.held_out_share:
            raise ValueError(f"test_share={self.test_share} must be at least 0 and leave problems to train on")

    def split_of(self, problem: Problem) -> str:
        """The one of SPLITS to which the problem belongs, whatever the order of its numbers."""
        key = repr((sorted(problem.numbers), problem.target)).encode()
        draw = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") / 2**64
        if draw < self.held_out_share:
            return "held_out"
        return "test" if draw < self.held_out_share + self.test_share else "train"

    def problems(self, count: int, *, seed: int, split: str = "train") -> list[Problem]:
        """`count` problems of one of SPLITS, no two with the same prompt; a prefix of what a larger count gives.

        Numbers are uniform, then the target is drawn with a weight of its right answers, as if one were hidden.
        Raises ValueError for another split, or if that many cannot be found.
        """
        if split not in SPLITS:
            raise ValueError(f"split={split!r} must be one of {', '.join(map(repr, SPLITS))}")
        generator = random.Random(seed)
        found: dict[Problem, Problem] = {}
        misses = 0
        while len(found) < count:
            numbers = tuple(generator.randint(1, self.largest) for _ in range(self.numbers))
            targets, weights = targets_of(self, tuple(sorted(numbers)), split)
            drawn = Problem(numbers, generator.choices(targets, weights)[0]) if targets else None
            key = drawn and (drawn.ordered if self.each_once else drawn)
            misses = misses + 1 if key is None or key in found else 0
            if misses > 10_000:
                what = "different problems" if self.each_once else "prompts"
                raise ValueError(f"{self} has about {len(found)} {what} in its split {split!r}, not {count}")
            if drawn is not None and key is not None:
                found.setdefault(key, drawn)
        return list(found.values())

    def dataset(self, count: int, *, seed: int, split: str = "train") -> Dataset:
        """The same problems with columns "prompt" (text), "numbers" (list of integers) and "target" (integer)."""
        problems = self.problems(count, seed=seed, split=split)
        return Dataset.from_dict(
            {
                "prompt": [problem.prompt for problem in problems],
                "numbers": [list(problem.numbers) for problem in problems],
                "target": [problem.target for problem in problems],
            }
        )


@lru_cache(maxsize=65536)
def targets_of(task: Countdown, numbers: tuple[int, ...], split: str) -> tuple[list[int], list[int]]:
    """The targets, ascending, that make a problem of that split of these ascending numbers, and their right answers."""
    fits = [
        (target, answers)
        for target, answers in answer_counts(numbers)
        if target <= task.largest_target
        and answers >= task.fewest_answers
        and task.split_of(Problem(numbers, target)) == split
    ]
    return [target for target, _ in fits], [answers for _, answers in fits]


def solved_examples(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """(prompt, every right answer) of each row, as `warm_start` takes them."""
    return [(row["prompt"], solutions(row["numbers"], row["target"])) for row in rows]


def warm_start_examples(
    task: Countdown, count: int = 5000, *, seed: int, easier: int = 800
) -> list[tuple[str, list[str]]]:
    """`count` solved training problems, and `easier` ones of each smaller size: they teach the last step of the others.

    Problems with few answers are among them, and the smaller ones have numbers up to the larger of the task's two
    bounds; none of them is held out.
    """
    task = replace(task, fewest_answers=1, each_once=False)
    tasks = [(task, count)]
    if easier:
        largest = max(task.largest, task.largest_target)
        tasks += [(replace(task, numbers=numbers, largest=largest), easier) for numbers in range(2, task.numbers)]
    return [example for each, size in tasks for example in solved_examples(each.dataset(size, seed=seed))]
