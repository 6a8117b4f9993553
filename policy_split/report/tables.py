"""The tables and legends of a report, before they are HTML."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .runs import interval

# a cell is a text, or a text and what stands behind it in small letters
Cell = str | tuple[str, str]


@dataclass
class Table:
    """The first cell of a row is its name; words: the cells are texts that may break, not numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    words: bool = False


@dataclass
class Entry:
    """One entry of a legend: what lines of that color (None: any) or dashes mean, and which run or mode it switches."""

    label: str
    color: int | None = None
    dashed: bool = False
    run: int | None = None
    mode: int | None = None


def measure_cell(value: Any) -> Cell:
    """A number, or {"mean", "low", "high"} with its interval; a dash for anything else."""
    found = interval(value)
    if found is None:
        return "–"
    mean, low, high = found
    return f"{mean:.4g}" if low is None else (f"{mean:.4g}", f"[{low:.4g}, {high:.4g}]")
