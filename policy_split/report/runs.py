"""What a run folder holds for its report: read as far as it is there, and what is not there said by name."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

# file -> what the report shows of it
PIECES = {
    "metrics.jsonl": "training curves",
    "evaluation.json": "pass@k and the comparison",
    "samples.jsonl": "samples with the entropy of every token",
    "config.yaml": "configuration",
    "environment.json": "versions and machine",
}
INSTEAD = {"config.yaml": "config.json", "samples.jsonl": "completions.jsonl"}
LARGEST_NUMBER_OF_STEPS = 6  # of samples, for each run
LARGEST_NUMBER_OF_RESPONSES = 4  # of one step and mode


@dataclass
class Run:
    """One folder; an empty piece is one that is not there, or that could not be read (then `problems` says so)."""

    name: str
    metrics: list[Mapping[str, Any]] = field(default_factory=list)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    samples: dict[int, list[Mapping[str, Any]]] = field(default_factory=dict)  # step -> rows
    steps_with_samples: int = 0  # in the file, of which `samples` has some
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)  # what is missing or unreadable, a sentence each


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """The runs of these folders, each under the shortest end of its path that no other has.

    Raises ValueError for no folders, FileNotFoundError for one that is not there or holds nothing of a run.
    """
    if not folders:
        raise ValueError("a report needs at least one run's folder")
    paths = list(dict.fromkeys(Path(folder).resolve() for folder in folders))
    return [_read_run(path, name) for path, name in zip(paths, _names(paths), strict=True)]


def number(value: Any) -> float | None:
    """The value as a float if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond every float
        return None


def interval(value: Any) -> tuple[float, float | None, float | None] | None:
    """(mean, low, high) of {"mean", "low", "high"} or of a plain number; None where there is no mean."""
    if not isinstance(value, Mapping):
        mean = number(value)
        return None if mean is None else (mean, None, None)
    mean, low, high = (number(value.get(name)) for name in ("mean", "low", "high"))
    if mean is None:
        return None
    return (mean, None, None) if low is None or high is None else (mean, low, high)


def section(value: Any, name: str) -> Mapping[str, Any]:
    """The mapping of that name inside a mapping; an empty one where there is none."""
    inner = value.get(name) if isinstance(value, Mapping) else None
    return inner if isinstance(inner, Mapping) else {}


def _read_run(folder: Path, name: str) -> Run:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder; give the output_dir of a training run")
    known = [*PIECES, *INSTEAD.values()]
    if not any((folder / piece).is_file() for piece in known):
        raise FileNotFoundError(f"{folder} holds no run: none of {', '.join(known)} is there")
    run = Run(name)
    for piece, shows in PIECES.items():
        other = INSTEAD.get(piece)
        if not any((folder / file).is_file() for file in (piece, other) if file):
            run.problems.append(f"no {piece}{f' (or {other})' if other else ''}: {shows} cannot be shown")
    metrics = [row for row in _lines(folder / "metrics.jsonl", run) if number(row.get("step")) is not None]
    run.metrics = sorted(metrics, key=lambda row: row["step"])
    if (folder / "metrics.jsonl").is_file() and not run.metrics:
        run.problems.append("metrics.jsonl has no step yet")
    run.evaluation = _object(folder / "evaluation.json", run)
    run.settings = _object(folder / "config.yaml", run) or _object(folder / "config.json", run)
    run.environment = _object(folder / "environment.json", run)
    _read_samples(folder, run)
    return run


def _read_samples(folder: Path, run: Run) -> None:
    """A few steps from the first to the last: the file may be long, so it is read twice and never held."""
    path = folder / "samples.jsonl"
    if not path.is_file():
        path = folder / "completions.jsonl"
        if path.is_file():
            run.problems.append("no samples.jsonl: the texts of completions.jsonl are shown, without entropies")
    steps = sorted({int(row["step"]) for row in _lines(path, run) if number(row.get("step")) is not None})
    run.steps_with_samples = len(steps)
    chosen = {steps[at] for at in spread(len(steps), LARGEST_NUMBER_OF_STEPS)}
    run.samples = {step: [] for step in sorted(chosen)}
    taken: dict[tuple[int, str], int] = {}
    for row in _lines(path, None):
        step = int(row["step"]) if number(row.get("step")) is not None else None
        if step not in chosen:
            continue
        place = (step, str(row.get("mode")))
        taken[place] = taken.get(place, 0) + 1
        if taken[place] <= LARGEST_NUMBER_OF_RESPONSES:
            run.samples[step].append(row)
    if path.is_file() and not steps:
        run.problems.append(f"{path.name} has no sample yet")


def spread(length: int, count: int) -> list[int]:
    """At most `count` places of 0 ... length-1, evenly apart, the first and the last among them."""
    if length <= count:
        return list(range(length))
    return sorted({round(at * (length - 1) / (count - 1)) for at in range(count)})


def _lines(path: Path, run: Run | None) -> Iterator[Mapping[str, Any]]:
    """The objects of a file of JSON lines; how many lines are none goes to the run's problems."""
    if not path.is_file():
        return
    unreadable = 0
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line) if line.strip() else None
            except (ValueError, RecursionError):
                row = None
            if isinstance(row, dict):
                yield row
            elif line.strip():
                unreadable += 1
    if run is not None and unreadable:
        run.problems.append(f"{path.name}: {unreadable} unreadable line{'s' * (unreadable > 1)} left out")


def _object(path: Path, run: Run) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        value = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        run.problems.append(f"{path.name} cannot be read: {str(error).splitlines()[0]}")
        return {}
    if not isinstance(value, dict):
        run.problems.append(f"{path.name} holds no names and values")
        return {}
    return value


def _names(paths: Sequence[Path]) -> list[str]:
    names = []
    for path in paths:
        for length in range(1, len(path.parts) + 1):
            name = "/".join(path.parts[-length:])
            if sum("/".join(other.parts[-length:]) == name for other in paths) == 1:
                break
        names.append(name)
    return names
