"""What a study on Countdown starts from: a small model after one warm start, problems, the reward."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset

from policy_split.config import PolicySplitConfig
from policy_split.countdown.grading import canonical, countdown_reward
from policy_split.countdown.job import warm_start_countdown
from policy_split.countdown.problems import warm_start_examples
from policy_split.countdown.sizes import CountdownSize, save_size
from policy_split.evaluation.question_scores import Key

from . import story
from .place import MODEL, QUESTIONS, QUESTIONS_SEED, TRAIN, WARM_START_SEED, on_device, once

EXAMPLES = "examples"
key: Key = canonical
STORY = story.COUNTDOWN


def prepare(folder: Path, size: CountdownSize, split: str) -> None:
    """The warm start and the problems of every run, made once; stopped on the way, what is there stays."""
    config, tokenizer = PolicySplitConfig(**size.settings), size.tokenizer()
    for name, count, chosen in (
        (TRAIN, size.train_questions, "train"),
        (QUESTIONS, size.held_out_questions, split),
    ):
        once(folder / name, partial(_save_problems, size, count, chosen))
    once(folder / EXAMPLES, partial(_save_examples, size))

    def train(path: Path) -> None:
        model = on_device(size.model(tokenizer, WARM_START_SEED))
        examples = [(row["prompt"], row["answers"]) for row in Dataset.load_from_disk(folder / EXAMPLES)]
        warm_start_countdown(model, tokenizer, config, size, examples, seed=WARM_START_SEED)
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)

    once(folder / MODEL, train)


def reward(start: Path) -> Callable[..., Any]:
    return countdown_reward


def described(size: CountdownSize) -> str:
    """Task and model in words, for the document."""
    task = size.task
    return (
        f"Countdown with {task.numbers} numbers up to {task.largest}, targets up to {task.largest_target}, at least "
        f"{task.fewest_answers} right answers each; a decoder of width {size.width} and {size.layers} layers, from one "
        f"common warm start."
    )


def mark(folder: Path, size: CountdownSize) -> None:
    """Leave what `policy-split eval` takes a run's problems from."""
    save_size(size, folder)


def _save_problems(size: CountdownSize, count: int, split: str, path: Path) -> None:
    size.task.dataset(count, seed=QUESTIONS_SEED, split=split).save_to_disk(path)


def _save_examples(size: CountdownSize, path: Path) -> None:
    examples = warm_start_examples(size.task, size.warm_start_examples, seed=WARM_START_SEED)
    columns = dict(zip(("prompt", "answers"), zip(*examples, strict=True), strict=True))
    Dataset.from_dict(columns).save_to_disk(path)
