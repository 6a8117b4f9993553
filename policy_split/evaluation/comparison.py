"""Evaluations from numbers per question: their means with intervals, and two of them compared question by question."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from policy_split.modes import MODE_NAMES

from .statistics import bootstrap_interval, pass_at_k, sign_flip_p_values, sizes_of_k

Path = tuple[str, ...]  # where a measure stands in an evaluation: ("modes", "normal", "pass_at_k", "8")


def summarize(scores: Mapping[str, Sequence[float]], num_samples: int, *, seed: int = 0) -> dict[str, Any]:
    """Means over the questions with bootstrap intervals: {"modes": {mode: measures}, "kl_high_normal", ...}.

    scores: lists (P,) named as `question_scores` names them. Each measure is {"mean", "low", "high"}, 95 % over the
    questions; `correct` becomes `pass_at_k` = {"1": ..., "2": ..., "4": ...}, see `sizes_of_k`.
    """
    columns = _columns(scores, num_samples)
    table = torch.stack(list(columns.values()), 1)
    low, high = bootstrap_interval(table, seed=seed)
    rows = zip(columns, table.mean(0).tolist(), low.tolist(), high.tolist(), strict=True)
    return _nested({path: {"mean": mean, "low": left, "high": right} for path, mean, left, right in rows})


def compare(
    first: Mapping[str, Any], second: Mapping[str, Any], *, modes: Mapping[str, str] | None = None, seed: int = 0
) -> dict[str, Any]:
    """The first evaluation minus the second, paired by question, for each measure.

    first, second: what `evaluate_in_detail` returns, or its JSON, on the same questions with the same number of
    responses; they may be runs, checkpoints or seeds. modes: which mode of the second each mode of the first is
    compared with, by default the same one; {"high_entropy": "normal"} leaves the KLs out. Returns {"num_questions",
    "num_samples", "modes": {mode of the first: measures}, "kl_high_normal", "kl_normal_high"}, each measure {"mean"
    (first), "against" (second), "difference", "low", "high", "p_value"}: the mean difference, its 95 % bootstrap
    interval over the questions, and the two-sided p-value of `sign_flip_p_values`. ValueError: other questions, another
    number of responses, another threshold of correctness, no numbers per question, an unknown mode.
    """
    _check_pair(first, second)
    given = dict(zip(MODE_NAMES, MODE_NAMES, strict=True)) if modes is None else dict(modes)
    unknown = {*given, *given.values()} - set(MODE_NAMES)
    if unknown:
        raise ValueError(f"modes={given}: there is no mode {sorted(unknown)[0]!r}, only {', '.join(MODE_NAMES)}")
    num_samples = first["num_samples"]
    ours, theirs = (_columns(each["per_question"], num_samples) for each in (first, second))
    partners = {path: path if path[0] != "modes" else ("modes", given.get(path[1], ""), *path[2:]) for path in ours}
    partners = {
        path: partner
        for path, partner in partners.items()
        if partner in theirs and (path[0] == "modes" or all(mode == other for mode, other in given.items()))
    }
    left, right = (
        torch.stack([columns[path] for path in paths], 1)
        for columns, paths in ((ours, partners), (theirs, partners.values()))
    )
    differences = left - right
    numbers = {
        "mean": left.mean(0),
        "against": right.mean(0),
        "difference": differences.mean(0),
        **dict(zip(("low", "high"), bootstrap_interval(differences, seed=seed), strict=True)),
        "p_value": sign_flip_p_values(differences, seed=seed),
    }
    rows = zip(*(values.tolist() for values in numbers.values()), strict=True)
    measures = {path: dict(zip(numbers, row, strict=True)) for path, row in zip(partners, rows, strict=True)}
    return {"num_questions": len(left), "num_samples": num_samples} | _nested(measures)


def _check_pair(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    for which, evaluation in (("first", first), ("second", second)):
        missing = [name for name in ("num_samples", "questions", "per_question") if name not in evaluation]
        if missing:
            raise ValueError(f"the {which} evaluation has no {missing[0]!r}: it is not one that can be compared")
    if first["num_samples"] != second["num_samples"]:
        raise ValueError(
            f"{first['num_samples']} and {second['num_samples']} responses per question: diversity and the spread of "
            f"pass@k depend on their number; evaluate both with the same"
        )
    if first.get("correct_reward") != second.get("correct_reward"):
        raise ValueError(
            f"correct from a reward of {first.get('correct_reward')} and of {second.get('correct_reward')} on: "
            f"evaluate both with the same"
        )
    ours, theirs = first["questions"], second["questions"]
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} and {len(theirs)} questions: a paired comparison needs the same ones")
    for number, (question, other) in enumerate(zip(ours, theirs, strict=True)):
        if question != other:
            raise ValueError(
                f"question {number} is {question!r} and {other!r}: a paired comparison needs the same ones"
            )


def _columns(scores: Mapping[str, Sequence[float]], num_samples: int) -> dict[Path, Tensor]:
    """Every measure's number of each question, (P,) float64; counts of correct responses become pass@k."""
    columns: dict[Path, Tensor] = {}
    for name, values in scores.items():
        mode, _, measure = name.rpartition("/")
        numbers = torch.as_tensor(values, dtype=torch.float64)
        if measure == "correct":
            sizes = sizes_of_k(num_samples)
            columns |= {("modes", mode, "pass_at_k", str(k)): pass_at_k(numbers, num_samples, k) for k in sizes}
        else:
            columns[("modes", mode, measure) if mode else (measure,)] = numbers
    return columns


def _nested(values: Mapping[Path, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in values.items():
        branch = tree
        for name in path[:-1]:
            branch = branch.setdefault(name, {})
        branch[path[-1]] = value
    return tree
