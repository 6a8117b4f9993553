"""Questions: a column `prompt`, text or chat messages; every other column goes to the reward functions."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

from policy_split.config import PolicySplitConfig
from policy_split.modes import MODE_NAMES, MODES, check_prompt, encode_prompt

from .reasoning_gym import PREFIX, gym_dataset

DATASET_HELP = "JSON lines, parquet, a saved dataset, reasoning-gym:TASK or a hub name,"
RESERVED_COLUMNS = ("completions", "completion_ids")
FILE_READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


def load_prompts(name_or_path: str | Path, *, split: str = "train", held_out: bool = False) -> Dataset:
    """Questions from JSON lines (.jsonl, .json), parquet, a folder of `save_to_disk`, or the Hugging Face hub;
    "reasoning-gym:NAME?size=2000&seed=0&..." makes those of a task (extra `reasoning-gym`), see `gym_dataset`.

    held_out: the size and seed of such a task are those of an evaluation, 500 and 1000000000, unless the name has them.
    Raises FileNotFoundError for a path that is not there, ValueError for another kind of file, for data that cannot be
    read, for no rows, and for no column `prompt` (it names those that are there).
    """
    path, where = Path(name_or_path), str(name_or_path)
    if where.startswith(PREFIX):
        dataset = gym_dataset(where, held_out=held_out)
    elif path.is_dir():
        dataset = _from_folder(path)
    elif path.suffix in FILE_READERS:
        if not path.is_file():
            raise FileNotFoundError(f"{where}: there is no such file")
        dataset = _from_file(path)
    elif path.exists():
        raise ValueError(
            f"{where}: cannot read {path.suffix or 'this kind of file'}; expected {', '.join(FILE_READERS)}"
        )
    else:
        dataset = _from_hub(where, split)
    if isinstance(dataset, DatasetDict):
        if split not in dataset:
            raise ValueError(f"{where} has no split {split!r}; it has {', '.join(dataset)}")
        dataset = dataset[split]
    return as_prompts(dataset, where)


def as_prompts(
    data: Dataset | Sequence[Mapping[str, Any]] | str | Path, name: str = "the dataset", *, held_out: bool = False
) -> Dataset:
    """A checked Dataset of questions: a Dataset, a list of rows, or anything that `load_prompts` takes.

    Raises ValueError for no rows, no column `prompt`, a column whose name reward functions need for something else, and
    a prompt that is neither text nor messages (it names the row); TypeError for another type of data.
    """
    if isinstance(data, (str, Path)):
        return load_prompts(data, held_out=held_out)
    if isinstance(data, Sequence):
        data = Dataset.from_list([dict(row) for row in data])
    if not isinstance(data, Dataset):
        raise TypeError(f"{name} must be a datasets.Dataset, a list of rows or a path, got {type(data).__name__}")
    if len(data) == 0:
        raise ValueError(f"{name} has no rows; there is nothing to train or evaluate on")
    if "prompt" not in data.column_names:
        raise ValueError(f"{name} has no column 'prompt'; its columns are {', '.join(data.column_names)}")
    for column in RESERVED_COLUMNS:
        if column in data.column_names:
            raise ValueError(
                f"{name} has a column {column!r}, a name that reward functions use for the responses; rename it"
            )
    for row, prompt in enumerate(data["prompt"]):
        try:
            check_prompt(prompt)
        except ValueError as error:
            raise ValueError(f"{name}, row {row}: {error}") from None
    return data


def encode_modes(tokenizer: Any, prompt: Any, config: PolicySplitConfig, where: str) -> list[list[int]]:
    """The prompt's token ids in each mode; ValueError names a sample too long, or the same in both modes."""
    try:
        ids = [
            encode_prompt(tokenizer, prompt, system, config.chat_template_kwargs) for system in config.system_prompts
        ]
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    for mode in MODES:
        if config.max_prompt_length is not None and len(ids[mode]) > config.max_prompt_length:
            raise ValueError(
                f"{where}: the {MODE_NAMES[mode]} prompt has {len(ids[mode])} tokens, "
                f"more than max_prompt_length={config.max_prompt_length}; raise it or remove the sample"
            )
    if ids[0] == ids[1]:
        raise ValueError(
            f"{where}: both modes read the same tokens; the chat template or tokenizer drops the system prompt"
        )
    return ids


def longest_prompt(tokenizer: Any, dataset: Dataset, config: PolicySplitConfig, name: str = "train_dataset") -> int:
    """Tokens of the longest prompt of either mode; every prompt is checked, see `encode_modes`."""
    return max(
        len(ids)
        for row, prompt in enumerate(dataset["prompt"])
        for ids in encode_modes(tokenizer, prompt, config, f"{name}, row {row}")
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


def _from_file(path: Path) -> Dataset:
    try:
        if FILE_READERS[path.suffix] == "parquet":
            return Dataset.from_parquet(str(path))
        text = path.read_text(encoding="utf-8")
        rows = (
            json.loads(text)
            if text.lstrip().startswith("[")
            else [json.loads(line) for line in text.splitlines() if line]
        )
        return Dataset.from_list(rows)
    except (OSError, ValueError, TypeError, AttributeError) as error:  # json, arrow and unicode errors are ValueErrors
        raise ValueError(f"{path}: cannot be read ({type(error).__name__}: {error})") from error


def _from_folder(path: Path) -> Dataset | DatasetDict:
    try:
        return load_from_disk(str(path))
    except FileNotFoundError as error:
        raise ValueError(f"{path}: a folder, but not one that datasets' save_to_disk has written") from error


def _from_hub(name: str, split: str) -> Dataset:
    try:
        return load_dataset(name, split=split)
    except Exception as error:  # the hub's client has many kinds: no network, no such dataset, no access, no such split
        raise FileNotFoundError(
            f"{name}: there is no such file or folder, and it could not be loaded from the Hugging Face hub "
            f"({type(error).__name__}: {error})"
        ) from error
