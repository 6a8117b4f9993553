"""Questions: a column `prompt`, text or chat messages; every other column goes to the reward functions."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from datasets import Dataset, DatasetDict

from policy_split.messages import check_prompt
from policy_split.modes import PromptSettings, encode_modes

from .reasoning_gym import check_held_out
from .rows import Questions, Rows, place
from .sources import one_split, read_questions

DATASET_HELP = (
    "JSON lines, parquet, a saved dataset, reasoning-gym:TASK, words or a hub name, each with or without :SPLIT,"
)
RESERVED_COLUMNS = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")

Data: TypeAlias = Questions | DatasetDict | Sequence[Mapping[str, Any]] | str | Path


def load_prompts(name_or_path: str | Path, *, split: str | None = None, held_out: bool = False) -> Questions:
    """Questions from JSON lines (.jsonl, .json, also packed by gzip), parquet, a folder of `save_to_disk`, or the
    Hugging Face hub: "PATH[:SPLIT]"; "reasoning-gym:NAME?size=2000&seed=0&..." makes those of a task (extra
    `reasoning-gym`), see `gym_dataset`, "words?size=200&count=4" those of the built-in task, see `WordsTask`.

    The rows of JSON lines are `Rows`, of the same types and keys as in the file; all others are a Dataset. split: in
    place of the one in the name, also datasets' slices such as "train[:100]"; not given: train. held_out: of several
    splits test or validation, and the size and seed of a task are those of an evaluation, 500 and 1000000000, unless
    the name has them. Raises FileNotFoundError for a path that is not there, ValueError for another kind of file, for
    data that cannot be read, for a split that is not there, for no rows, and for no column `prompt` (it names those
    that are there).
    """
    return as_prompts(read_questions(str(name_or_path), split=split, held_out=held_out), str(name_or_path))


def as_prompts(data: Data, name: str = "the dataset", *, held_out: bool = False) -> Questions:
    """Checked questions: of a Dataset or DatasetDict, a list of rows, or anything that `load_prompts` takes.

    Raises ValueError for no rows, no column `prompt`, a column whose name reward functions need for something else, and
    a prompt that is neither text nor messages (it names the row); TypeError for another type of data.
    """
    if isinstance(data, (str, Path)):
        return load_prompts(data, held_out=held_out)
    if isinstance(data, DatasetDict):
        data = one_split(data, name, held_out=held_out)
    if isinstance(data, Sequence):
        data = Rows(cast(Sequence[Mapping[str, Any]], data), name)
    if not isinstance(data, (Dataset, Rows)):
        raise TypeError(f"{name} must be a datasets.Dataset, a list of rows or a path, got {type(data).__name__}")
    if len(data) == 0:
        raise ValueError(f"{name} has no rows; there is nothing to train or evaluate on")
    if "prompt" not in data.column_names:
        raise ValueError(f"{name} has no column 'prompt'; its columns are {', '.join(data.column_names)}")
    for column in RESERVED_COLUMNS:
        if column in data.column_names:
            raise ValueError(
                f"{name} has a column {column!r}, a name that reward functions use for something else; rename it"
            )
    for row, prompt in enumerate(data["prompt"]):
        try:
            check_prompt(prompt)
        except ValueError as error:
            raise ValueError(f"{place(data, row, name)}: {error}") from None
    return data


def check_apart(train: Questions, evaluated: Questions) -> None:
    """A warning if questions of the evaluation are trained on; what `check_held_out` says of reasoning-gym's tasks."""
    if check_held_out(train, evaluated):
        return
    trained = set(map(repr, train["prompt"]))
    shared = sum(repr(prompt) in trained for prompt in evaluated["prompt"])
    if shared:
        warnings.warn(
            f"{shared} of the {len(evaluated)} questions of eval_dataset are questions of train_dataset as well: "
            f"they measure what was trained on",
            stacklevel=3,
        )


def longest_prompt(tokenizer: Any, dataset: Questions, config: PromptSettings, name: str = "train_dataset") -> int:
    """Tokens of the longest prompt of either mode; every prompt is checked, see `encode_modes`."""
    return max(
        len(ids)
        for row, prompt in enumerate(dataset["prompt"])
        for ids in encode_modes(tokenizer, prompt, config, place(dataset, row, name))
    )


def question_indices(size: int, seed: int, step: int, prompts_per_step: int) -> list[int]:
    """Rows of the questions of a step (from 0): the stream of one seeded permutation per epoch, cut in steps.

    A function of its arguments alone, so that a run that is resumed neither skips nor repeats a question.
    """
    positions = range(step * prompts_per_step, (step + 1) * prompts_per_step)
    orders = {}
    for epoch in {position // size for position in positions}:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        orders[epoch] = torch.randperm(size, generator=generator).tolist()
    return [orders[position // size][position % size] for position in positions]
