"""Tasks of reasoning-gym by name: "reasoning-gym:countdown?size=2000&seed=3&min_numbers=3", with their own scores."""

import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard
from urllib.parse import quote, unquote

from datasets import Dataset
from tqdm.auto import tqdm

from policy_split.extras import check_extra
from policy_split.isolation.isolated import Isolated
from policy_split.progress import track

from .rows import Questions

PREFIX = "reasoning-gym:"
WORKER = Path(__file__).with_name("gym_worker.py")
# Question i is drawn from seed + i: seeds of two sets of questions must be further apart than the sets are long.
TRAIN_SEED, HELD_OUT_SEED = 0, 1_000_000_000
TRAIN_SIZE, HELD_OUT_SIZE = 2000, 500
GENERATION_SECONDS, GENERATION_BYTES = 120.0, 4 << 30
SCORING_SECONDS, SCORING_BYTES = 5.0, 1 << 30


@dataclass(frozen=True)
class GymTask:
    name: str
    size: int
    seed: int
    settings: Mapping[str, str] = field(default_factory=dict)  # the task's own, as they were written

    def __str__(self) -> str:
        values = {"size": self.size, "seed": self.seed, **self.settings}
        return f"{PREFIX}{self.name}?" + "&".join(f"{key}={quote(str(x), ' +-*/,')}" for key, x in values.items())

    @property
    def seeds(self) -> range:
        return range(self.seed, self.seed + self.size)


def gym_task(where: str, *, held_out: bool = False) -> GymTask:
    """The task that a name asks for; ValueError for another form. held_out: what size and seed are if not given."""
    name, _, query = where.removeprefix(PREFIX).partition("?")
    settings: dict[str, str] = {}
    for part in query.split("&") if query else ():
        key, equals, value = part.partition("=")
        if not (key and equals) or key in settings:
            raise ValueError(f"{where}: {part!r} must be setting=value, each setting once, separated by '&'")
        settings[key] = unquote(value)
    if not name:
        raise ValueError(f"{where}: a task's name must follow, such as {PREFIX}countdown")
    size, seed = (HELD_OUT_SIZE, HELD_OUT_SEED) if held_out else (TRAIN_SIZE, TRAIN_SEED)
    numbers = {"size": settings.pop("size", str(size)), "seed": settings.pop("seed", str(seed))}
    for key, text in numbers.items():
        if not (text.isascii() and text.isdigit()) or int(text) < (key == "size"):
            raise ValueError(f"{where}: {key}={text} must be an integer of at least {int(key == 'size')}")
    return GymTask(name, int(numbers["size"]), int(numbers["seed"]), settings)


def gym_dataset(where: str, *, held_out: bool = False) -> Dataset:
    """The task's questions: columns `prompt`, `answer`, `entry` (a Python literal, for the score) and `task`.

    Made in a child process, the same in every run of one version of reasoning-gym. Raises ImportError without
    reasoning-gym, ValueError for an unknown task or setting, and for a question that could not be made.
    """
    task = gym_task(where, held_out=held_out)
    worker = _worker("generator", task, [task.size, task.seed], GENERATION_SECONDS, GENERATION_BYTES)
    rows = []
    results = worker.results(range(task.size))
    for number, made in enumerate(tqdm(results, desc=PREFIX + task.name, total=task.size, leave=False, disable=None)):
        if made.fault is not None:
            raise ValueError(f"{where}: question {number} {made.fault}")
        rows.append(made.value | {"task": str(task)})
    worker.close()
    return Dataset.from_list(rows)


class ReasoningGymReward:
    """Reward by a task's own `score_answer`, in a child process: `ReasoningGymReward("reasoning-gym:countdown")`.

    Scores the text between the last <answer> and </answer> of a response, or all of it. A row's column `task` names the
    task, the argument that of rows without one; `entry` is what `gym_dataset` has made. A response whose score takes
    longer than `seconds`, needs more memory, raises, ends the process, or is no finite number gets 0.0 and a warning.
    Raises ImportError without reasoning-gym, ValueError for an unknown task or setting.
    """

    def __init__(self, where: str, *, seconds: float = SCORING_SECONDS, memory: int = SCORING_BYTES):
        self.default, self.limits = gym_task(where), (seconds, memory)
        self.__name__ = PREFIX + self.default.name
        self.workers: dict[tuple[Any, ...], Isolated] = {}
        self._of(self.default)

    def __call__(
        self, completions: Sequence[Any], entry: Sequence[str], task: Sequence[str | None] | None = None
    ) -> list[float]:
        named = task or [None] * len(completions)
        texts = [each if isinstance(each, str) else each[-1]["content"] for each in completions]
        tasks = [gym_task(each) if _named(each) else self.default for each in named]
        scores, faults = [0.0] * len(texts), {}
        samples: dict[tuple[Any, ...], dict[tuple[str, str], list[int]]] = {}
        for sample, item in enumerate(zip(texts, entry, strict=True)):
            samples.setdefault(_key(tasks[sample]), {}).setdefault(item, []).append(sample)  # equal ones once
        for same in samples.values():
            worker = self._of(tasks[next(iter(same.values()))[0]])
            with closing(worker.results(list(same))) as results:
                shown = track(results, self.__name__, "response", len(same))
                for numbers, result in zip(same.values(), shown, strict=True):
                    score, fault = _checked(result)
                    for sample in numbers:
                        scores[sample] = score
                        if fault is not None:
                            faults[sample] = fault
        if faults:
            sample, fault = min(faults.items())
            warnings.warn(
                f"{self.__name__}: {len(faults)} of {len(texts)} responses could not be scored and get 0.0; "
                f"the score of sample {sample} ({texts[sample][:200]!r}) {fault}",
                stacklevel=2,
            )
        return scores

    def _of(self, task: GymTask) -> Isolated:
        """The process of the task: training and evaluation share it where only their size and seed differ."""
        key = _key(task)
        if key not in self.workers:
            self.workers[key] = _worker("scorer", task, [], *self.limits)
        return self.workers[key]


def is_gym(dataset: Questions) -> bool:
    """Whether every row is of a task of reasoning-gym."""
    return bool(_tasks(dataset))


def own_reward(dataset: Questions) -> ReasoningGymReward | None:
    """The reward of a dataset that `gym_dataset` has made, also if it was saved since; None for any other."""
    return ReasoningGymReward(dataset["task"][0]) if is_gym(dataset) else None


def check_held_out(train: Questions, evaluated: Questions) -> bool:
    """Whether both are of tasks; ValueError if they draw the same questions from the same seeds, a warning if some are
    the same by chance."""
    tasks = _tasks(train), _tasks(evaluated)
    if not all(tasks):
        return False
    shared = len(set(train["prompt"]) & set(evaluated["prompt"]))
    if not shared:
        return True
    for ours in tasks[0]:
        for theirs in tasks[1]:
            if ours.name == theirs.name and set(ours.seeds) & set(theirs.seeds):
                raise ValueError(
                    f"eval_dataset {theirs} has {shared} questions of train_dataset {ours}: question i is drawn from "
                    f"seed + i; leave the seed out, or set it to {ours.seeds.stop} or more"
                )
    warnings.warn(f"{shared} different questions of eval_dataset are in train_dataset as well, by chance", stacklevel=3)
    return True


def _tasks(dataset: Questions) -> list[GymTask]:
    """The tasks of the rows; none if one of the rows is of no task."""
    if not {"task", "entry"} <= set(dataset.column_names):
        return []
    named = dict.fromkeys(dataset["task"])
    if not all(map(_named, named)):
        return []
    return [gym_task(name) for name in named]


def _named(task: Any) -> TypeGuard[str]:
    return isinstance(task, str) and task.startswith(PREFIX)


def _key(task: GymTask) -> tuple[Any, ...]:
    return task.name, *sorted(task.settings.items())


def _worker(function: str, task: GymTask, arguments: list[Any], seconds: float, memory: int) -> Isolated:
    check_extra("reasoning_gym", f"{PREFIX}{task.name}")
    try:
        given = [task.name, dict(task.settings), *arguments]
        return Isolated(f"{WORKER}:{function}", given, seconds=seconds, memory=memory)
    except ValueError as error:
        raise ValueError(f"{PREFIX}{task.name}: {error}") from None


def _checked(result: Any) -> tuple[float, str | None]:
    value, fault = result
    if fault is None and (not isinstance(value, (int, float)) or not math.isfinite(value)):
        fault = f"is {value!r:.100}, not a finite number"
    return (0.0, fault) if fault is not None else (float(value), None)
