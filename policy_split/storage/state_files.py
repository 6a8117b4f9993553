"""A nested state in files that run nothing when they are read: JSON, and safetensors for its tensors. No pickle."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

MARKS = ("tensor", "tuple", "items")  # an object of one of these keys alone stands for what JSON has no word for


def write_state(folder: Path, name: str, state: Any) -> None:
    """Write name.json and, for its tensors, name.safetensors, each tensor under the dotted path that leads to it.

    state: dicts with text or integer keys, lists, tuples, tensors, numbers, texts and None, nested as you like; tensors
    that are the same memory are written once. Raises TypeError, naming the path, for anything else, and OSError where
    the disk takes no more.
    """
    tensors: dict[str, Tensor] = {}
    described = _describe(state, "", tensors, {})
    if tensors:
        try:
            save_file(tensors, folder / f"{name}.safetensors", metadata={"format": "pt"})
        except SafetensorError as error:  # what safetensors makes of a full disk
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else 5, str(error)) from error
    (folder / f"{name}.json").write_text(json.dumps(described) + "\n", encoding="utf-8")


def read_state(folder: Path, name: str) -> Any:
    """What `write_state` was given, bit for bit, with its tensors on the CPU."""
    described = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    path = folder / f"{name}.safetensors"
    # copies: the tensors of load_file may be the file itself, which a later checkpoint replaces
    tensors = {key: tensor.clone() for key, tensor in load_file(path).items()} if path.exists() else {}
    return _restore(described, tensors)


def _describe(value: Any, name: str, tensors: dict[str, Tensor], seen: dict[Any, str]) -> Any:
    if isinstance(value, Tensor):
        return {"tensor": _keep(value.detach(), name, tensors, seen)}
    if isinstance(value, Mapping):
        pairs = [(key, _describe(value[key], f"{name}.{key}".lstrip("."), tensors, seen)) for key in value]
        if not all(type(key) in (str, int) for key in value):
            raise TypeError(f"{name or 'state'}: keys must be texts or integers, got {list(value)}")
        plain = all(type(key) is str for key in value) and not (len(value) == 1 and next(iter(value)) in MARKS)
        return dict(pairs) if plain else {"items": [list(pair) for pair in pairs]}
    if isinstance(value, (list, tuple)):
        parts = [_describe(part, f"{name}.{number}", tensors, seen) for number, part in enumerate(value)]
        return {"tuple": parts} if isinstance(value, tuple) else parts
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{name or 'state'}: cannot write a {type(value).__name__}")


def _keep(tensor: Tensor, name: str, tensors: dict[str, Tensor], seen: dict[Any, str]) -> str:
    """Put the tensor among those to write; returns the name under which it is there."""
    storage = tensor.untyped_storage().data_ptr()
    key = (storage, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
    if storage and key in seen:  # tied weights
        return seen[key]
    while name in tensors:  # {"a.b": x, "a": {"b": y}}
        name += "+"
    alone = storage not in (place for place, *_ in seen)
    seen[key] = name
    tensors[name] = tensor.contiguous() if alone else tensor.clone(memory_format=torch.contiguous_format)
    return name


def _restore(described: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(described, list):
        return [_restore(part, tensors) for part in described]
    if not isinstance(described, dict):
        return described
    if len(described) == 1:
        mark, value = next(iter(described.items()))
        if mark == "tensor":
            return tensors[value]
        if mark == "tuple":
            return tuple(_restore(part, tensors) for part in value)
        if mark == "items":
            return {key: _restore(part, tensors) for key, part in value}
    return {key: _restore(part, tensors) for key, part in described.items()}
