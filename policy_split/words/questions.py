"""Questions of the task by name, "words:test?size=100&count=4&file=mine.txt", and what they are made of."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

from .inflection import KINDS
from .word_list import Word, read_word_list, words_of

NAME = "words"
SIZES = {"train": 2000, "held_out": 200, "test": 200}
FEWEST, MOST = 2, 6  # words of a question
PROMPT = "Write one short sentence that uses these words: {}."


@dataclass(frozen=True)
class WordsTask:
    """`count` words to a question, of the list in `file` or our own; size None: that of the split."""

    size: int | None = None
    seed: int = 0
    count: int = 3
    file: str | None = None

    def __post_init__(self) -> None:
        if not FEWEST <= self.count <= MOST:
            raise ValueError(f"{self}: count={self.count} must be {FEWEST} to {MOST} words")
        if self.size is not None and self.size < 1:
            raise ValueError(f"{self}: size={self.size} must be at least 1")

    def __str__(self) -> str:
        values = {"size": self.size, "seed": self.seed, "count": self.count, "file": self.file}
        return f"{NAME}?" + "&".join(f"{key}={quote(str(x), '/')}" for key, x in values.items() if x is not None)

    def rows(self, split: str) -> list[dict[str, Any]]:
        """Rows with `prompt`, `words`, `forms` (of each word) and `task`, no prompt twice; the words of two splits
        have none in common.

        A noun, a verb and an adjective in any order, then more of each. Raises what `read_word_list` raises, and
        ValueError for another split and for a list too short for that many questions.
        """
        words = read_word_list(self.file)
        by_kind = words_of(words, split, str(self))
        size = SIZES[split] if self.size is None else self.size
        generator = random.Random(f"{self.seed}/{split}")
        found: dict[tuple[str, ...], list[Word]] = {}
        misses = 0
        while len(found) < size:
            drawn = [generator.choice(by_kind[KINDS[place % len(KINDS)]]) for place in range(self.count)]
            generator.shuffle(drawn)
            key = tuple(sorted(word.text for word in drawn))
            if key in found or len(set(key)) < len(key):
                misses += 1
                if misses > 1000 + 20 * size:
                    raise ValueError(
                        f"{self}: the word list is too short: {len(words)} words make about {len(found)} questions of "
                        f"the split {split!r}, not {size}"
                    )
                continue
            found[key] = drawn
        return [self._row(drawn) for drawn in found.values()]

    def _row(self, drawn: list[Word]) -> dict[str, Any]:
        names = [word.text for word in drawn]
        forms = [list(word.forms) for word in drawn]
        return {"prompt": PROMPT.format(", ".join(names)), "words": names, "forms": forms, "task": str(self)}


def is_words(where: str) -> bool:
    """Whether a name is that of this task, with or without settings."""
    return where == NAME or where.startswith(f"{NAME}?")


def words_task(where: str) -> WordsTask:
    """The task that "words?setting=value&..." names; ValueError for another setting or value."""
    settings: dict[str, Any] = {}
    _, _, query = where.partition("?")
    for part in query.split("&") if query else ():
        key, equals, value = part.partition("=")
        if not equals or key not in READERS or key in settings:
            raise ValueError(f"{where}: {part!r} must be one of {', '.join(READERS)}, =value, each once")
        settings[key] = READERS[key](where, key, unquote(value))
    return WordsTask(**settings)


def _integer(where: str, key: str, value: str) -> int:
    if not (value.isascii() and value.isdigit()):
        raise ValueError(f"{where}: {key}={value} must be a whole number")
    return int(value)


READERS: Mapping[str, Any] = {
    "size": _integer,
    "seed": _integer,
    "count": _integer,
    "file": lambda where, key, value: value,
}
