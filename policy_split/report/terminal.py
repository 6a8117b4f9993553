"""Samples in a terminal: tokens on the color of their entropy, modes side by side where there is room."""

import unicodedata
from collections.abc import Iterator, Sequence
from itertools import pairwise, zip_longest

from .text import visible

BOUNDS = (0.5, 1.0, 2.0, 3.0)  # nats: from each on the color is the next
COLORS = ("", "\x1b[30;48;5;230m", "\x1b[30;48;5;222m", "\x1b[30;48;5;215m", "\x1b[30;48;5;203m")
RESET = "\x1b[0m"
GAP = " | "
NARROWEST = 24  # of one of two columns
LINES = {"\r\n": "\n", "\r": "\n", "\t": "    "}

Line = list[tuple[str, int]]  # characters and the level of their entropy


def level(entropy: float) -> int:
    return sum(entropy >= bound for bound in BOUNDS)


def legend() -> str:
    """What the colors stand for."""
    names = [f"below {BOUNDS[0]:g}", *(f"{low:g} to {high:g}" for low, high in pairwise(BOUNDS))]
    names.append(f"{BOUNDS[-1]:g} and above")
    return "entropy in nats: " + " ".join(painted([(f" {name} ", at)]) for at, name in enumerate(names))


def side_by_side(columns: Sequence[Sequence[Line]], width: int, *, color: bool) -> str:
    """Columns of lines that `wrapped` has made for `column_width`; below one another where they have no room."""
    if len(columns) == 1 or not fit(len(columns), width):
        return "\n".join("\n".join(_shown(line, color) for line in column) for column in columns)
    room = column_width(len(columns), width)
    rows = zip_longest(*columns, fillvalue=[])
    return "\n".join(
        GAP.join(_shown(line, color) + " " * (room - cells(line)) for line in row).rstrip() for row in rows
    )


def column_width(count: int, width: int) -> int:
    return (width - len(GAP) * (count - 1)) // count if fit(count, width) else max(width, NARROWEST)


def fit(count: int, width: int) -> bool:
    return (width - len(GAP) * (count - 1)) // count >= NARROWEST


def wrapped(tokens: Sequence[tuple[str, float]], width: int) -> list[Line]:
    """Texts with their entropies as lines of at most `width` cells; what would act on a terminal is made visible."""
    lines: list[Line] = [[]]
    used = 0
    for character, at in _characters(tokens):
        size = _cells(character)
        if character == "\n" or used + size > width:
            lines.append([])
            used = 0
        if character != "\n":
            lines[-1].append((character, at))
            used += size
    return lines


def painted(line: Line) -> str:
    """The line with its colors, each run of one level painted once."""
    text, before = "", 0
    for character, at in line:
        if at != before:
            text += (RESET if before else "") + COLORS[at]
        text, before = text + character, at
    return text + (RESET if before else "")


def cells(line: Line) -> int:
    return sum(_cells(character) for character, _ in line)


def _characters(tokens: Sequence[tuple[str, float]]) -> Iterator[tuple[str, int]]:
    for text, entropy in tokens:
        for given, instead in LINES.items():
            text = text.replace(given, instead)
        for part, line in enumerate(text.split("\n")):
            if part:
                yield "\n", 0
            yield from ((character, level(entropy)) for character in _harmless(line))


def _harmless(text: str) -> str:
    """Also without the marks that turn the direction of what follows."""
    return "".join("\ufffd" if unicodedata.category(each) in ("Cf", "Zl", "Zp") else each for each in visible(text))


def _cells(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _shown(line: Line, color: bool) -> str:
    return painted(line) if color else "".join(character for character, _ in line)
