"""Inflected forms: by rule, by a word's own forms, and what no form of a word is."""

import pytest

from policy_split.words.inflection import forms_of
from policy_split.words.word_list import read_word_list

NOUNS = {
    "dog": "dogs", "box": "boxes", "bus": "buses", "church": "churches", "brush": "brushes", "pony": "ponies",
    "toy": "toys", "hero": "heroes", "radio": "radios", "horse": "horses", "judge": "judges", "ox": "oxes",
}  # fmt: skip
VERBS = {
    "jump": "jumps jumped jumping", "bake": "bakes baked baking", "stop": "stops stopped stopping",
    "hope": "hopes hoped hoping", "cry": "cries cried crying", "play": "plays played playing",
    "fix": "fixes fixed fixing", "watch": "watches watched watching", "visit": "visits visited visiting",
    "agree": "agrees agreed agreeing", "tie": "ties tied tying", "dye": "dyes dyed dyeing",
    "rain": "rains rained raining", "show": "shows showed showing", "hug": "hugs hugged hugging",
    "quiz": "quizes quizzed quizzing", "wonder": "wonders wondered wondering", "go": "goes goed going",
}  # fmt: skip
ADJECTIVES = {
    "green": "greener greenest", "big": "bigger biggest", "nice": "nicer nicest", "happy": "happier happiest",
    "simple": "simpler simplest", "clever": "cleverer cleverest", "hollow": "hollower hollowest",
    "beautiful": "", "famous": "", "quiet": "quieter quietest", "new": "newer newest", "dry": "drier driest",
    "careful": "", "delicious": "", "strange": "stranger strangest", "eager": "",
}  # fmt: skip


@pytest.mark.parametrize(("word", "plural"), NOUNS.items())
def test_plurals(word, plural):
    assert set(forms_of("noun", word)) == {word, plural}


@pytest.mark.parametrize(("word", "forms"), VERBS.items())
def test_verbs(word, forms):
    assert set(forms_of("verb", word)) == {word, *forms.split()}


@pytest.mark.parametrize(("word", "forms"), ADJECTIVES.items())
def test_comparison(word, forms):
    assert set(forms_of("adjective", word)) == {word, *forms.split()}


def test_own_forms_stand_in_place_of_the_rule_that_they_break():
    assert set(forms_of("noun", "child", ["children"])) == {"child", "children"}
    assert set(forms_of("verb", "take", ["took", "taken"])) == {"take", "takes", "taking", "took", "taken"}
    assert set(forms_of("verb", "run", ["ran", "running"])) == {"run", "runs", "ran", "running"}
    assert set(forms_of("verb", "forget", ["forgetting"])) == {"forget", "forgets", "forgeted", "forgetting"}
    assert set(forms_of("adjective", "good", ["better", "best"])) == {"good", "better", "best"}
    with pytest.raises(ValueError, match="'adverb' must be one of 'noun', 'verb', 'adjective'"):
        forms_of("adverb", "soon")


def test_the_forms_of_our_list():
    words = {(word.kind, word.text): set(word.forms) for word in read_word_list()}
    assert words["noun", "mouse"] == {"mouse", "mice"}
    assert words["noun", "piano"] == {"piano", "pianos"}
    assert words["noun", "scarf"] == {"scarf", "scarves", "scarfs"}
    assert words["verb", "swim"] == {"swim", "swims", "swam", "swum", "swimming"}
    assert words["verb", "travel"] >= {"traveled", "travelled", "traveling", "travelling", "travels"}
    assert words["verb", "read"] == {"read", "reads", "reading"}
    assert words["adjective", "bad"] == {"bad", "worse", "worst"}
    assert words["adjective", "shy"] == {"shy", "shyer", "shyest", "shier", "shiest"}
    assert all(form == form.casefold() for forms in words.values() for form in forms)
