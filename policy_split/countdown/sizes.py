"""The built-in task in sizes, from a minute on two CPU cores to an hour on a GPU: problems, model, warm start, steps.

What differs from the paper's settings, and why: small models from scratch need the code form of the clamp with a larger
eta, and the share correction, without which the modes drift apart and the normal mode loses accuracy.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from policy_split.storage.whole_folder import replace_text

from .model import HIGH_ENTROPY_PROMPT, countdown_model, countdown_tokenizer
from .pool import pool_of
from .problems import Countdown

FILE = "countdown.json"

SETTINGS: dict[str, Any] = {
    "seed": 1,
    "max_steps": 400,
    "prompts_per_step": 64,
    "num_generations": 8,
    "per_device_train_batch_size": 2048,
    "max_completion_length": 6,
    "learning_rate": 6e-4,
    "lr_scheduler_type": "constant",
    "clamp": "code",
    "eta": 0.6,
    "share_correction": "truncated",
    "high_entropy_prompt": HIGH_ENTROPY_PROMPT,
    "save_steps": 50,
    "save_total_limit": 2,
}


@dataclass(frozen=True)
class CountdownSize:
    """Everything that a run on the task needs; `settings` are those of PolicySplitConfig that differ from SETTINGS."""

    task: Countdown
    width: int = 64
    layers: int = 3
    heads: int = 4
    train_questions: int = 6000
    held_out_questions: int = 512
    warm_start_examples: int = 8000
    warm_start_steps: int = 1500
    warm_start_batch_size: int = 64
    warm_start_learning_rate: float = 3e-3
    warm_start_paired: bool = True  # the same examples under both prompts: the modes begin closer to each other
    own_settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        # an answer of n numbers has 2n - 1 tokens and its end
        return {**SETTINGS, "max_completion_length": 2 * self.task.numbers, **self.own_settings}

    def training_questions(self, seed: int, *, fresh: bool) -> Dataset:
        """Those of a training; fresh: different problems only, all of the split where it has fewer."""
        task, count = self.task, self.train_questions
        if fresh and not task.each_once:
            task, count = replace(task, each_once=True), min(count, pool_of(task).problems["train"])
        return task.dataset(count, seed=seed)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        return countdown_tokenizer(max(100, self.task.largest, self.task.largest_target))

    def model(self, tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
        return countdown_model(tokenizer, seed=seed, width=self.width, layers=self.layers, heads=self.heads)


_LARGE = {"prompts_per_step": 128, "per_device_train_batch_size": 8192, "learning_rate": 1e-4, "warmup_steps": 10}
_STUDY = CountdownSize(
    Countdown(
        numbers=3, largest=40, largest_target=100, fewest_answers=2, held_out_share=0.1, test_share=0.1, each_once=True
    ),
    train_questions=50000,
    warm_start_examples=30000,
    warm_start_steps=900,
    own_settings={"max_steps": 1500, "learning_rate": 3e-4, "fresh_questions": True},
)
SIZES: dict[str, CountdownSize] = {
    "minute": CountdownSize(
        Countdown(numbers=3, largest=9, largest_target=30),
        train_questions=3000,
        held_out_questions=256,
        warm_start_examples=4000,
        warm_start_steps=500,
        own_settings={"max_steps": 60},
    ),
    # large enough that the small model cannot learn the problems by heart, which would take the diversity away
    "small": CountdownSize(Countdown(numbers=3, largest=12, largest_target=40)),
    # more different problems than a study visits: what is learnt by heart is of no use. A short warm start, so that the
    # model still hears the prompt
    "study": _STUDY,
    # what `make train` runs: the same problems, as many as its steps ask
    "first": replace(
        _STUDY,
        train_questions=25600,
        warm_start_examples=16000,
        own_settings={**_STUDY.own_settings, "max_steps": 400},
    ),
    "medium": CountdownSize(
        Countdown(numbers=4, largest=12, largest_target=40),
        width=128,
        layers=4,
        train_questions=12000,
        warm_start_examples=16000,
        warm_start_steps=4000,
        warm_start_learning_rate=2e-3,
        own_settings={"learning_rate": 3e-4},
    ),
    "gpu": CountdownSize(
        Countdown(numbers=4, largest=50, largest_target=100, test_share=0.2, each_once=True),
        width=512,
        layers=8,
        heads=8,
        train_questions=20000,
        warm_start_examples=12000,
        warm_start_steps=4000,
        warm_start_batch_size=256,
        warm_start_learning_rate=6e-4,
        own_settings={**_LARGE, "max_steps": 300, "fresh_questions": True},
    ),
    "gpu-hour": CountdownSize(
        Countdown(numbers=4, largest=100, largest_target=200, test_share=0.2),
        width=512,
        layers=8,
        heads=8,
        train_questions=30000,
        warm_start_examples=30000,
        warm_start_steps=15000,
        warm_start_batch_size=256,
        warm_start_learning_rate=6e-4,
        own_settings={**_LARGE, "max_steps": 2000},
    ),
}


def save_size(size: CountdownSize, folder: Path) -> None:
    """Write what a run was made for beside its results: its evaluation asks the same kind of problems."""
    replace_text(folder / FILE, json.dumps(asdict(size), indent=1) + "\n")


def load_size(folder: Path) -> CountdownSize | None:
    """What `save_size` has written; None if there is nothing."""
    path = folder / FILE
    return size_of_dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def size_of_dict(fields: Mapping[str, Any]) -> CountdownSize:
    """The size of which `dataclasses.asdict`, or its JSON, has made a dictionary."""
    return CountdownSize(**{**fields, "task": Countdown(**fields["task"])})


def find_size(name: str) -> CountdownSize:
    """SIZES[name]; ValueError lists the names."""
    if name not in SIZES:
        raise ValueError(f"size={name!r} must be one of {', '.join(map(repr, SIZES))}")
    return SIZES[name]
