"""Where questions come from: files, folders of saved datasets, the hub, a task of reasoning-gym; and which split."""

import re
import warnings
from itertools import chain
from pathlib import Path

from datasets import Dataset, DatasetDict, ReadInstruction, concatenate_datasets, load_dataset, load_from_disk

from policy_split.words.questions import is_words, words_task

from .json_lines import read_json_rows
from .reasoning_gym import PREFIX, gym_dataset
from .rows import Questions, Rows

JSON_SUFFIXES = (".jsonl", ".json", ".ndjson", ".jsonl.gz", ".json.gz", ".ndjson.gz")
SUFFIXES = (*JSON_SUFFIXES, ".parquet")
TRAIN = "train"
# in this order: what held-out questions are taken from, where nothing is said
HELD_OUT = ("test", "validation", "valid", "val", "dev", "eval", "evaluation", "held_out", "heldout")
# a name, a slice of one, or several with "+", as datasets writes them; a letter alone in front is a drive of Windows
SPLIT = re.compile(r"(?P<source>..+):(?P<split>\w[\w.]*(\[[^\]]*\])?(\+\w[\w.]*(\[[^\]]*\])?)*)")


def read_questions(where: str, *, split: str | None = None, held_out: bool = False) -> Questions:
    """What stands at "PATH[:SPLIT]"; a path that exists as it is written has no split in its name. See `load_prompts`.

    split: in place of the one in the name. Raises FileNotFoundError for what is not there, ValueError for what cannot
    be read and for a split that is not there.
    """
    source, named = split_of(where)
    if named is not None and split is not None:
        raise ValueError(f"{where} names a split, and split={split!r} was given as well; give one of them")
    split = named if split is None else split
    path = Path(source)
    if source.startswith(PREFIX):
        made: Questions = gym_dataset(source, held_out=held_out)
        return made
    if is_words(source) and not path.exists():
        task = words_task(source)
        return Rows(task.rows(split or ("held_out" if held_out else TRAIN)), str(task))
    if path.is_dir():
        return one_split(_from_folder(path), source, split, held_out=held_out)
    if source.endswith(SUFFIXES):
        if not path.is_file():
            raise FileNotFoundError(f"{source}: there is no such file")
        return one_split({TRAIN: _from_file(path)}, source, split, held_out=held_out)
    if path.exists():
        kind = path.suffix or "this kind of file"
        raise ValueError(f"{source}: cannot read {kind}; expected {', '.join(SUFFIXES)}")
    return one_split(_from_hub(source, split), source, None, held_out=held_out)


def split_of(where: str) -> tuple[str, str | None]:
    """("PATH", "SPLIT") of "PATH:SPLIT"; what exists as it is written, and a task of reasoning-gym, has no split."""
    found = SPLIT.fullmatch(where)
    if found is None or where.startswith(PREFIX) or Path(where).exists():
        return where, None
    return found["source"], found["split"]


def one_split(
    splits: dict[str, Questions] | Questions, where: str, split: str | None = None, *, held_out: bool = False
) -> Questions:
    """One of several splits: the one that is named, else train; of held-out questions test or validation.

    ValueError where none is named and it is not plain which is meant, and for one that is not there. A single split
    goes by any purpose; a warning if held-out questions are then those of one named train.
    """
    if not isinstance(splits, dict):
        return splits
    names = [str(name) for name in splits]
    there = f"it has {', '.join(names)}"
    if split is not None:
        return _part(splits, where, split, there)
    single = names == [TRAIN] and not isinstance(splits, DatasetDict)  # a file or a set without splits
    if single or (not held_out and TRAIN in names):
        return splits[TRAIN]
    if not held_out:
        raise ValueError(f"{where} has no split 'train'; {there}: name one, as in {where}:{names[0]}")
    others = [name for name in names if name != TRAIN]
    chosen = next((name for name in HELD_OUT if name in others), others[0] if len(others) == 1 else None)
    if chosen is None and others:
        raise ValueError(f"{where}: which split is held out? {there}: name one, as in {where}:{others[0]}")
    if chosen is None:
        warnings.warn(f"{where} has no split but train: held-out questions are taken from it", stacklevel=4)
    return splits[chosen or TRAIN]


def _part(splits: dict[str, Questions], where: str, split: str, there: str) -> Questions:
    if split in splits:
        return splits[split]
    try:
        lengths = {str(name): len(data) for name, data in splits.items()}
        parts = ReadInstruction.from_spec(split).to_absolute(lengths)
    except Exception as error:  # ValueError, AssertionError
        raise ValueError(f"{where} has no split {split!r}; {there} ({error})") from None
    chosen = [range(part.from_ or 0, lengths[part.splitname] if part.to is None else part.to) for part in parts]
    if len({part.splitname for part in parts}) == 1:
        return splits[parts[0].splitname].select(list(chain(*chosen)))
    sets = [splits[p.splitname].select(rows) for p, rows in zip(parts, chosen, strict=True)]
    joined: Questions = concatenate_datasets(sets)
    return joined


def _from_file(path: Path) -> Questions:
    try:
        if path.name.endswith(JSON_SUFFIXES):
            rows = read_json_rows(path)
            return Rows((row.value for row in rows), str(path), [row.line for row in rows])
        table: Questions = Dataset.from_parquet(str(path))
        return table
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({type(error).__name__}: {error})") from error
    except ValueError as error:  # Arrow's own are ValueErrors as well
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path}: cannot be read ({type(error).__name__}: {error})") from error


def _from_folder(path: Path) -> dict[str, Questions]:
    try:
        saved = load_from_disk(str(path))
    except FileNotFoundError as error:
        files = sorted(file.name for file in path.iterdir() if file.name.endswith(SUFFIXES))
        there = f"; it holds {', '.join(files[:5])}, which can be given" if files else ""
        raise ValueError(f"{path}: a folder, but not one that datasets' save_to_disk has written{there}") from error
    return saved if isinstance(saved, DatasetDict) else {TRAIN: saved}


def _from_hub(name: str, split: str | None) -> Dataset | DatasetDict:
    try:
        return load_dataset(name, split=split)
    except Exception as error:  # the hub's client has many kinds: no network, no such dataset, no access, no such split
        raise FileNotFoundError(
            f"{name}: there is no such file or folder, and it could not be loaded from the Hugging Face hub "
            f"({type(error).__name__}: {error})"
        ) from error
