"""What a run depends on besides its settings: the content of its questions, tokenizer, model, names of its rewards."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel

from policy_split.storage.whole_folder import digest

REWARD_FILES = "reward files"
AT_ONCE = 1000  # rows of a Dataset, each of which takes long by itself
SAMPLE = 32  # numbers of each weight: a training moves all of them
# of a model's config: where it came from and how it is run
IGNORED = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"}


def fingerprint(
    questions: Any,
    tokenizer: Any,
    model: PreTrainedModel,
    rewards: Sequence[str],
    frozen: str | None,
    reward_sources: str | Sequence[str] | None = None,
) -> dict[str, Any]:
    """For fingerprint.json; frozen: `weights_sum` of what the run depends on and no checkpoint holds."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    template = getattr(tokenizer, "chat_template", None)
    config = json.loads(model.config.to_json_string(use_diff=False))
    return {
        "questions": {"rows": len(questions), "content": _rows_sum(_rows(questions))},
        "tokenizer": {
            "tokens": len(tokenizer),
            "vocabulary": _sum([json.dumps(vocabulary)]),
            "special tokens": {name: str(value) for name, value in tokenizer.special_tokens_map.items()},
            "chat template": None if template is None else _sum([json.dumps(template)]),
        },
        "model": {name: value for name, value in config.items() if name not in IGNORED and name[0] != "_"},
        "frozen weights": frozen,
        "rewards": list(rewards),
        REWARD_FILES: reward_files(reward_sources),
    }


def reward_files(sources: str | Sequence[str] | None) -> dict[str, str]:
    """The sum of each file of "FILE.py:FUNCTION" among the names of rewards, by its path."""
    names = [sources] if isinstance(sources, str) else sources or ()
    paths = [Path(name.rpartition(":")[0]) for name in names]
    return {str(path): digest(path) for path in paths if path.suffix == ".py" and path.is_file()}


def edited_rewards(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Files of rewards that are not as they were: a reward may be mended, and the run goes on with it."""
    kept, now = (each.get(REWARD_FILES) or {} for each in (before, after))
    return [path for path in now if kept.get(path, now[path]) != now[path]]


def weights_sum(model: nn.Module, *, trainable: bool) -> str:
    """A sum over the first numbers of each weight, or of those alone that do not train."""
    chosen = [(name, each) for name, each in model.named_parameters() if trainable or not each.requires_grad]
    starts = [each.detach().reshape(-1)[:SAMPLE].float().cpu() for _, each in chosen]
    names = [f"{name} {list(each.shape)}" for name, each in chosen]
    return _sum([*names, json.dumps(torch.cat(starts).tolist() if starts else [])])


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs between two fingerprints: name -> (before, after), in words that a person can compare."""
    found: dict[str, tuple[Any, Any]] = {}
    for part in after:
        if part in before and before[part] != after[part] and part != REWARD_FILES:
            found |= _of_part(part, before[part], after[part])
    return found


def _of_part(part: str, before: Any, after: Any) -> dict[str, tuple[Any, Any]]:
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        return {part: ("those of then", "others") if part == "frozen weights" else (before, after)}
    # a newer transformers may know of more settings of a model, and of fewer
    found = {name: (before[name], after[name]) for name in after if name in before and before[name] != after[name]}
    sums = {"content", "vocabulary", "chat template"}
    return {
        f"{part}: {name}": ("that of then", "another") if name in sums and None not in pair else pair
        for name, pair in found.items()
    }


def _rows(questions: Any) -> Iterator[Mapping[str, Any]]:
    if not isinstance(questions, Dataset) or questions.format["type"] is not None:
        yield from (questions[row] for row in range(len(questions)))
        return
    for columns in questions.iter(AT_ONCE):
        yield from (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))


def _rows_sum(rows: Iterable[Mapping[str, Any]]) -> str:
    return _sum(
        json.dumps({name: row[name] for name in sorted(row)}, ensure_ascii=False, default=_plain) for row in rows
    )


def _plain(value: Any) -> Any:
    """For what JSON has no word for: numbers, bytes, or the type alone, as a text of it may hold its address."""
    if isinstance(value, bytes):
        return _sum([value.hex()])
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "tobytes"):
        return _sum([value.tobytes().hex()])
    return str(value) if hasattr(value, "isoformat") else type(value).__name__


def _sum(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()
