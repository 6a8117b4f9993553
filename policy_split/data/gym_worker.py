"""What reasoning-gym does, in a process of its own: the functions that `reasoning_gym` has called by `Isolated`.

Loaded as a file, away from the package. reasoning-gym's import seeds the global generators and takes a second, its
scorers evaluate what a model wrote, and some of its questions depend on the order of sets.
"""

import ast
import dataclasses
import difflib
import enum
import random
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

LISTS = (list, tuple, Sequence)


def generator(name: str, settings: Mapping[str, str], size: int, seed: int) -> Callable[[int], dict[str, Any]]:
    """Rows of the task by their numbers: question, answer, and the whole entry as a Python literal."""
    dataset = create(name, settings, size=size, seed=seed)

    def row(number: int) -> dict[str, Any]:
        random.seed(f"{seed} {number}")  # list_functions draws from the global generator
        entry = literal(dataset[number])
        return {"prompt": entry["question"], "answer": entry["answer"], "entry": repr(entry)}

    return row


def scorer(name: str, settings: Mapping[str, str]) -> Callable[[Sequence[str]], float]:
    """The task's own score of (response, entry): of the last <answer> ... </answer>, or of the whole response."""
    dataset = create(name, settings, size=1, seed=0)

    def score(item: Sequence[str]) -> float:
        response, entry = item
        graded: float = dataset.score_answer(answer(response), ast.literal_eval(entry))
        return graded

    return score


def answer(response: str) -> str:
    _, opened, rest = response.rpartition("<answer>")
    return (rest.partition("</answer>")[0] if opened else response).strip()


def literal(value: Any) -> Any:
    """The value without numpy's types, whose repr is no Python literal."""
    if isinstance(value, Mapping):
        return {literal(key): literal(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set)):
        return type(value)(literal(inner) for inner in value)
    return value.item() if hasattr(value, "item") else value


def create(name: str, settings: Mapping[str, str], **fixed: int) -> Any:
    """The dataset; ValueError for an unknown task or setting, and for a value that it does not take."""
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        close = difflib.get_close_matches(name, DATASETS) or sorted(DATASETS)
        raise ValueError(f"no such task; there are {', '.join(close)}")
    config = DATASETS[name][1]
    hints = typing.get_type_hints(config)
    known = [field.name for field in dataclasses.fields(config) if field.name not in fixed]
    for key in settings:
        if key not in known:
            raise ValueError(f"no setting {key!r}; its settings are {', '.join(['size', 'seed', *known])}")
    values = {key: typed(text, hints[key], f"{key}={text}") for key, text in settings.items()}
    try:
        return reasoning_gym.create_dataset(name, **values, **fixed)
    except (AssertionError, ValueError, TypeError, LookupError) as error:
        raise ValueError(str(error) or type(error).__name__) from error


def typed(text: str, hint: Any, where: str) -> Any:
    """The text as a value of the type; a list is separated by commas."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return None if text.lower() == "none" else typed(text, inner[0], where)
    if origin is typing.Literal:
        if text not in inner:
            raise ValueError(f"{where} must be one of {', '.join(inner)}")
        return text
    kind = inner[0] if inner else str
    if (hint in LISTS or origin in LISTS) and typing.get_origin(kind) is None:
        values = [typed(part, kind, where) for part in text.split(",")]
        return tuple(values) if tuple in (hint, origin) else values
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{where} must be true or false")
        return text.lower() == "true"
    if not (hint in (int, float, str) or (isinstance(hint, type) and issubclass(hint, enum.Enum))):
        raise ValueError(f"{where} cannot be given in a name: it is a {getattr(hint, '__name__', hint)}")
    try:
        return hint(text)
    except ValueError:
        expected = f"one of {', '.join(str(each.value) for each in hint)}" if issubclass(hint, enum.Enum) else ""
        raise ValueError(f"{where} must be {expected or f'of type {hint.__name__}'}") from None
