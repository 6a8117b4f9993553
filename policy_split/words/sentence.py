"""Whether a text is one short sentence, and which words it uses: rules that word lists and repetition do not pass."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

FEWEST_WORDS, MOST_WORDS = 4, 16
LONGEST = 2000  # characters that are read at all: patterns go back and forth in what they read
# compounds are words of their own: "dog-eared" does not use "dog", nor does "dog2"
WORD = re.compile(r"(?<!\w)[^\W\d_]+(?:['-][^\W\d_]+)*(?!\w)")
QUOTES = "\"'“”‘’«»"
STOPS = ".!?…。！？"
ENDING = re.compile(rf"[{STOPS}]+[{QUOTES})]*$")
# a stop inside a text, what closes behind it, and what comes then
INNER_STOP = re.compile(
    rf"(?P<stop>[{STOPS}]+)(?P<closed>[{QUOTES})]*)(?P<space>\s*)[{QUOTES}(]*(?P<next>[^\s{STOPS}{QUOTES}()])"
)
FUNCTION_WORDS = (
    "a an the and or but so to of in on at by for from with into over under as up down out off through that it its he "
    "him his she her they them their i me my you your we us our is was were are be been had has have not no"
)
TITLES, BEFORE_MORE = ("mr", "mrs", "ms", "dr", "st", "prof", "mt", "vs"), ("etc", "jr", "sr")
REPEATABLE = frozenset(FUNCTION_WORDS.split())
JOINED = re.compile(r"\s*(,\s*(and|or)?|\s(and|or|&)|[/;|+])\s*", re.IGNORECASE)
UNQUOTED = str.maketrans("", "", QUOTES)


def normalized(text: str) -> str:
    """One form of each letter, straight apostrophes inside words, no white space around."""
    return re.sub(r"(?<=\w)[’ʼ](?=\w)", "'", unicodedata.normalize("NFC", text)).strip()


def used_words(text: str, forms: Sequence[Sequence[str]]) -> list[bool]:
    """Of each asked word whether one of its forms stands in the text as a word; one alone in quotes is only named."""
    text = normalized(text[:LONGEST])
    found = {_bare(match[0]) for match in WORD.finditer(text) if not _quoted(text, match)}
    return [not found.isdisjoint(each) for each in forms]


def fault_of(text: str, forms: Sequence[Sequence[str]], most_words: int = MOST_WORDS) -> str | None:
    """Why the text is no short sentence, in words, or None if it is one; forms: of the words that it is asked to use.

    One sentence: it begins with a capital letter, ends with a stop, has none inside (abbreviations, numbers and what
    someone says aside), no line break and no colon, FEWEST_WORDS to most_words words. No repetition: a word that is not
    among REPEATABLE comes once, none twice in a row. No list: three of the asked words are not merely joined by commas.
    """
    if len(text) > LONGEST:
        return f"it is longer than {LONGEST} characters"
    text = normalized(text)
    words = [_bare(match[0]) for match in WORD.finditer(text)]
    if not words:
        return "it has no words"
    return _fault_of_shape(text) or _fault_of_words(text, words, forms, most_words)


def _fault_of_shape(text: str) -> str | None:
    first = text.lstrip(QUOTES + "(")[:1]
    if not first.isalpha() or first != first.upper():
        return "it does not begin with a capital letter"
    if not ENDING.search(text):
        return "it does not end with a stop"
    if len(text.splitlines()) > 1:
        return "it has several lines"
    if re.search(r":\s", text):
        return "it has a colon: an introduction or a list"
    if any(_ends_here(text, match) for match in INNER_STOP.finditer(text)):
        return "it has more than one sentence"
    return None


def _fault_of_words(text: str, words: Sequence[str], forms: Sequence[Sequence[str]], most_words: int) -> str | None:
    if len(words) < FEWEST_WORDS:
        return f"it has fewer than {FEWEST_WORDS} words"
    if len(words) > most_words:
        return f"it has more than {most_words} words"
    twice = next((a for a, b in pairwise(words) if a == b), None)
    if twice is not None:
        return f"it has {twice!r} twice in a row"
    again = next((word for word, times in Counter(words).items() if times > 1 and word not in REPEATABLE), None)
    if again is not None:
        return f"it repeats {again!r}"
    return "it only lists the words" if _lists(text, forms) else None


def _ends_here(text: str, match: re.Match[str]) -> bool:
    """Whether a stop inside the text ends a sentence."""
    last, following = re.findall(r"[\w.]*$", text[: match.start()])[0].casefold(), match["next"]
    if match["stop"] == ".":
        if last in BEFORE_MORE:
            return not following.islower()
        if last in TITLES or re.fullmatch(r"(\w\.)*[^\W\d_]", last):  # Mr., e.g., J.
            return False
        if not match["space"] and last[-1:].isdigit() and following.isdigit():
            return False
    if match["closed"] or match["stop"].endswith(("…", "..")):  # what someone says, a pause
        return not following.islower()
    return True


def _lists(text: str, forms: Sequence[Sequence[str]]) -> bool:
    """Whether three of the asked words stand in a row, joined by commas, "and" or "or" alone."""
    asked = {form for each in forms for form in each}
    row, end = 0, None
    for match in WORD.finditer(text):
        if _bare(match[0]) in ("and", "or") and end is not None:
            continue
        if _bare(match[0]) not in asked:
            row, end = 0, None
            continue
        row = row + 1 if end is not None and JOINED.fullmatch(text[end : match.start()].translate(UNQUOTED)) else 1
        end = match.end()
        if row == 3:
            return True
    return False


def _bare(word: str) -> str:
    """Lower case, without a possessive."""
    return re.sub(r"'s$|'$", "", word.casefold())


def _quoted(text: str, match: re.Match[str]) -> bool:
    before, after = text[: match.start()][-1:], text[match.end() :][:1]
    return before in tuple(QUOTES) and after in tuple(QUOTES)
