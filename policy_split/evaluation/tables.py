"""Evaluations and comparisons as markdown tables for people."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from policy_split.modes import MODE_NAMES

MEASURES = {  # name -> (title, decimal places)
    "accuracy": ("accuracy", 3),
    "pass_at_k": ("pass@{k}", 3),
    "distinct_correct": ("different correct answers of {n}", 2),
    "distinct_correct_8": ("different correct answers of 8, expected", 2),
    "entropy": ("entropy (nats/token)", 3),
    "distinct_1": ("distinct-1", 3),
    "distinct_2": ("distinct-2", 3),
    "distinct_3": ("distinct-3", 3),
    "div_ngram_8": ("Div-n-gram of 8", 3),
    "div_bleu_8": ("Div-BLEU of 8", 3),
    "judge_creativity": ("creativity, judged 1 to 10", 2),
    "judge_originality": ("originality, judged 1 to 10", 2),
    "judge_imagery": ("imagery, judged 1 to 10", 2),
    "mean_length": ("length (tokens)", 2),
    "truncated": ("cut off at the longest length", 3),
}
KL_TITLE = "exact KL to the other mode (nats/token)"
KL_OF_MODE = {"normal": "kl_normal_high", "high_entropy": "kl_high_normal"}


def evaluation_table(evaluation: Mapping[str, Any]) -> str:
    """Each measure of both modes with its 95 % interval over the questions."""
    titles = [name.replace("_", "-") for name in MODE_NAMES]
    rows = [["mean [95 % interval]", *titles]]
    by_mode = [list(_measures(evaluation, mode)) for mode in MODE_NAMES]
    for cells in zip(*by_mode, strict=True):
        title, places, _ = cells[0]
        values = [_with_interval(measure, "mean", places) for _, _, measure in cells]
        rows.append([title, *values])
    return markdown(rows)


def comparison_table(comparison: Mapping[str, Any], first: str, second: str) -> str:
    """Each measure of two evaluations: both means, the difference with its 95 % interval and its p-value."""
    rows = [["mode", "measure", first, second, "difference [95 % interval]", "p"]]
    for mode in comparison["modes"]:
        for title, places, measure in _measures(comparison, mode):
            means = [f"{measure[name]:.{places}f}" for name in ("mean", "against")]
            difference = _with_interval(measure, "difference", places, sign="+")
            rows.append([mode.replace("_", "-"), title, *means, difference, p_value_text(measure["p_value"])])
    return markdown(rows)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as a markdown table with aligned columns; the first row is its head."""
    widths = [max(3, *(len(row[column]) for row in rows)) for column in range(len(rows[0]))]
    lines = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in lines
    )


def p_value_text(p_value: float) -> str:
    """Two or three places, or a bound where they would show a zero."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _measures(evaluation: Mapping[str, Any], mode: str) -> Iterator[tuple[str, int, Mapping[str, float]]]:
    measures = evaluation["modes"][mode]
    for name, (title, places) in MEASURES.items():
        if name == "pass_at_k":
            yield from ((title.format(k=k), places, measure) for k, measure in measures[name].items())
        elif name in measures:  # some are of many responses, or younger than the evaluation
            yield title.format(n=evaluation["num_samples"]), places, measures[name]
    if KL_OF_MODE[mode] in evaluation:
        yield KL_TITLE, 4, evaluation[KL_OF_MODE[mode]]


def _with_interval(measure: Mapping[str, float], name: str, places: int, sign: str = "") -> str:
    return f"{measure[name]:{sign}.{places}f} [{measure['low']:{sign}.{places}f}, {measure['high']:{sign}.{places}f}]"
