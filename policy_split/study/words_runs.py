"""What a study on the words task starts from: a model of the user's, sentences to write, the reward with its judge."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset

from policy_split.config import PolicySplitConfig
from policy_split.evaluation.evaluate import plain_text
from policy_split.evaluation.question_scores import Key
from policy_split.models.policy import load_model, load_tokenizer
from policy_split.models.source import check_source
from policy_split.rewards.words import WordsReward
from policy_split.words.questions import WordsTask

from . import story
from .place import MODEL, QUESTIONS, QUESTIONS_SEED, TRAIN, once

key: Key = plain_text
STORY = story.WORDS


@dataclass(frozen=True)
class WordsSize:
    """The model, by name or path; how many questions of how many words; settings of PolicySplitConfig of every run."""

    model: str
    count: int = 3
    train_questions: int = 2000
    held_out_questions: int = 16
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def task(self) -> WordsTask:
        return WordsTask(seed=QUESTIONS_SEED, count=self.count)


def prepare(folder: Path, size: WordsSize, split: str) -> None:
    """The model as it is and the questions of every run, made once."""
    check_source(size.model)
    for name, count, chosen in (
        (TRAIN, size.train_questions, "train"),
        (QUESTIONS, size.held_out_questions, split),
    ):
        once(folder / name, partial(_save_questions, size, count, chosen))

    def save(path: Path) -> None:
        load_model(size.model, PolicySplitConfig(**size.settings)).save_pretrained(path)
        load_tokenizer(None, size.model).save_pretrained(path)

    once(folder / MODEL, save)


def reward(start: Path) -> Callable[..., Any]:
    return WordsReward(str(start / MODEL))


def described(size: WordsSize) -> str:
    """Task and model in words, for the document."""
    return (
        f"One short sentence that uses {size.count} given words, by {Path(size.model).stem}; the reward: the share of "
        f"the words used x form x fluency to the model before training."
    )


def mark(folder: Path, size: WordsSize) -> None:
    """Nothing: `policy-split eval RUN --dataset words` needs no more."""


def _save_questions(size: WordsSize, count: int, split: str, path: Path) -> None:
    Dataset.from_list(replace(size.task, size=count).rows(split)).save_to_disk(path)
