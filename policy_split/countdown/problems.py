"""Countdown, the built-in task: reach a target from given numbers, each used exactly once, with + - * /.

One text column, "3 5 2 = 16 :"; an answer is an expression, "3 5 + 2 *". A problem has several right answers: that
makes exploration measurable. Everything is made here: problems, every solution, grader, tokenizer, a small model.
"""

import hashlib
import itertools
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from .expressions import PRECEDENCE, apply, evaluate

HIGH_ENTROPY_PROMPT = "explore"
SPLITS = ("train", "held_out", "test")
SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}


class Problem(NamedTuple):
    """Numbers in the order in which they are shown, and the target."""

    numbers: tuple[int, ...]
    target: int

    @property
    def prompt(self) -> str:
        """The question as the model reads it."""
        return f"{' '.join(map(str, self.numbers))} = {self.target} :"


@dataclass(frozen=True)
class Countdown:
    """A difficulty: how many numbers, each in 1..largest, targets in 1..largest_target, and how many right answers.

    `fewest_answers`: diversity shows only where several answers are right. With the defaults there are 941 problems of
    four answers or more (8.5 on average), 187 of them held out, and 612 of fewer.

    A problem is its multiset of numbers and its target. A hash of it, not a seed, decides to which of SPLITS it
    belongs: no training row of any count, seed or difficulty is ever a held-out problem, and with `test_share` above 0
    a third split remains that neither training nor the choice of settings has seen. Raises ValueError for bad settings.
    """

    numbers: int = 3
    largest: int = 9
    largest_target: int = 30
    fewest_answers: int = 4
    held_out_share: float = 0.2
    test_share: float = 0.0

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
        found: dict[Problem, None] = {}
        misses = 0
        while len(found) < count:
            numbers = tuple(generator.randint(1, self.largest) for _ in range(self.numbers))
            weights = {
                problem: answers
                for target, answers in answer_counts(numbers)
                if target <= self.largest_target
                and answers >= self.fewest_answers
                and self.split_of(problem := Problem(numbers, target)) == split
            }
            drawn = generator.choices(list(weights), list(weights.values()))[0] if weights else None
            misses = misses + 1 if drawn is None or drawn in found else 0
            if misses > 10_000:
                raise ValueError(f"{self} has about {len(found)} prompts in its split {split!r}, not {count}")
            if drawn is not None:
                found[drawn] = None
        return list(found)

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
    task = replace(task, fewest_answers=1)
    tasks = [(task, count)]
    if easier:
        largest = max(task.largest, task.largest_target)
        tasks += [(replace(task, numbers=numbers, largest=largest), easier) for numbers in range(2, task.numbers)]
    return [example for each, size in tasks for example in solved_examples(each.dataset(size, seed=seed))]


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


def countdown_tokenizer(largest_number: int = 100) -> PreTrainedTokenizerFast:
    """One token for each number in 0..largest_number, each symbol and the word of the high-entropy prompt.

    Text decodes to "3 5 + 2 *". No chat template: a system prompt goes in front of the text, "explore 3 5 2 = 16 :".
    """
    words = [*SPECIAL_TOKENS.values(), *PRECEDENCE, "(", ")", "=", ":", HIGH_ENTROPY_PROMPT]
    words += [str(number) for number in range(largest_number + 1)]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=SPECIAL_TOKENS["unk_token"])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=256,
        **SPECIAL_TOKENS,
    )


def countdown_model(
    tokenizer: PreTrainedTokenizerFast, *, seed: int = 0, width: int = 64, layers: int = 3, heads: int = 4
) -> Qwen3ForCausalLM:
    """A Qwen3 decoder from scratch (0.16 M parameters by default), CPU, fp32; the global random state is kept."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=width // heads,
        max_position_embeddings=tokenizer.model_max_length,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config)
