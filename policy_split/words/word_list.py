"""Lists of words, one to a line: its class, the word, and the inflected forms that no rule makes."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from .inflection import KINDS, forms_of

OWN_LIST = Path(__file__).with_name("list.txt")
SPLITS = ("train", "held_out", "test")
HELD_OUT_SHARE = TEST_SHARE = 0.2
EXPECTED = "expected a class, a word and its irregular forms, such as 'noun child children'"
LETTERS = re.compile(r"[^\W\d_]+(['-][^\W\d_]+)*")


class Word(NamedTuple):
    kind: str  # of KINDS
    text: str
    forms: tuple[str, ...]  # itself among them, lower case

    @property
    def split(self) -> str:
        """The one of SPLITS to which it belongs by its letters alone: no list and no seed moves it."""
        draw = int.from_bytes(hashlib.blake2b(self.text.encode(), digest_size=8).digest(), "big") / 2**64
        if draw < HELD_OUT_SHARE:
            return "held_out"
        return "test" if draw < HELD_OUT_SHARE + TEST_SHARE else "train"


def read_word_list(path: str | Path | None = None) -> list[Word]:
    """The words of a file, or of our own list; a line that begins with # is a comment.

    Raises FileNotFoundError, or ValueError in one line for a file without words, a line of another form, and a word
    that comes twice in one class.
    """
    source = OWN_LIST if path is None else Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"word list {source}: there is no such file")
    try:
        lines = source.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"word list {source}: not UTF-8 ({error})") from None
    words = list(_words(source, lines))
    if not words:
        raise ValueError(f"word list {source} has no words; {EXPECTED} on each line")
    return words


def words_of(words: Iterable[Word], split: str, where: str) -> dict[str, list[Word]]:
    """The words of a split by class; ValueError for one without a noun, a verb or an adjective."""
    if split not in SPLITS:
        raise ValueError(f"{where} has no split {split!r}; it has {', '.join(SPLITS)}")
    words = list(words)
    chosen = {kind: [word for word in words if word.kind == kind and word.split == split] for kind in KINDS}
    lacking = [kind for kind, found in chosen.items() if not found]
    if lacking:
        raise ValueError(
            f"{where}: the word list is too short: none of its {len(words)} words in the split {split!r} has the class "
            f"{lacking[0]!r}; a word's letters decide its split, so that each class needs a dozen words or more"
        )
    return chosen


def _words(source: Path, lines: Iterable[str]) -> Iterable[Word]:
    seen: dict[tuple[str, str], int] = {}
    for number, line in enumerate(lines, 1):
        parts = line.casefold().replace("’", "'").split()
        if not parts or parts[0].startswith("#"):
            continue
        where = f"word list {source}, line {number}"
        kind, *named = parts
        if kind not in KINDS or not named:
            raise ValueError(f"{where}: {line.strip()!r:.100}: {EXPECTED}; the classes are {', '.join(KINDS)}")
        strange = next((each for each in named if not LETTERS.fullmatch(each)), None)
        if strange is not None:
            raise ValueError(f"{where}: {strange!r:.100} is not one word of letters")
        word, *own = named
        if (kind, word) in seen:
            raise ValueError(f"{where}: the {kind} {word!r} stands in line {seen[kind, word]} already")
        seen[kind, word] = number
        yield Word(kind, word, forms_of(kind, word, own))
