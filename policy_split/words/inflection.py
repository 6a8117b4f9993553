"""The inflected forms of an English noun, verb or adjective: by rule, unless a word brings forms of its own."""

import re
from collections.abc import Collection

KINDS = ("noun", "verb", "adjective")
VOWELS = "aeiou"
SIBILANT = re.compile(r"(s|x|z|ch|sh)$")


def forms_of(kind: str, word: str, own: Collection[str] = ()) -> tuple[str, ...]:
    """The word, its forms by rule and its own, sorted; own forms take the place of the rule that they break.

    Of a noun the plural, of a verb the third person, the past and -ing, of an adjective comparative and superlative if
    the word is short. Own forms replace a noun's plural, an adjective's comparison and a verb's past; one that ends in
    -ing replaces the verb's -ing.
    """
    if kind == "noun":
        made = [] if own else [_with_s(word)]
    elif kind == "verb":
        made = [_with_s(word)]
        if not any(not form.endswith("ing") for form in own):
            made.append(_with_ending(word, "ed"))
        if not any(form.endswith("ing") for form in own):
            made.append(_with_ing(word))
    elif kind == "adjective":
        made = [_with_ending(word, end) for end in ("er", "est")] if not own and _compares(word) else []
    else:
        raise ValueError(f"{kind!r} must be one of {', '.join(map(repr, KINDS))}")
    return tuple(sorted({word, *made, *own}))


def _with_s(word: str) -> str:
    if _ends_in_consonant_y(word):
        return word[:-1] + "ies"
    return word + ("es" if SIBILANT.search(word) or re.search(r"[^aeiou]o$", word) else "s")


def _with_ending(word: str, ending: str) -> str:
    """Of -ed, -er and -est, which all begin with e."""
    if word.endswith("e"):
        return word[:-1] + ending
    if _ends_in_consonant_y(word):
        return word[:-1] + "i" + ending
    return word + (word[-1] if _doubles(word) else "") + ending


def _with_ing(word: str) -> str:
    if word.endswith("ie"):
        return word[:-2] + "ying"
    if word.endswith("e") and not word.endswith(("ee", "oe", "ye")) and len(word) > 2:
        return word[:-1] + "ing"
    return word + (word[-1] if _doubles(word) else "") + "ing"


def _ends_in_consonant_y(word: str) -> bool:
    return bool(re.search(r"[^aeiou]y$", word))


def _doubles(word: str) -> bool:
    """Whether the last consonant is doubled: of one syllable, with one vowel before it."""
    return bool(re.fullmatch(r"(qu|[^aeiouy])*[aeiouy][bdfgklmnprtvz]", word)) and len(word) > 2


def _compares(word: str) -> bool:
    """Whether -er and -est are used: of one syllable, or of two of which the second is light."""
    sounded = word[:-1] if re.search(r"[^aeioul]e$", word) else word  # its last e is silent
    syllables = len(re.findall(r"[aeiouy]+", sounded))
    return syllables == 1 or (syllables == 2 and word.endswith(("y", "le", "ow", "er")) and word not in NOT_COMPARED)


NOT_COMPARED = frozenset({"eager"})
