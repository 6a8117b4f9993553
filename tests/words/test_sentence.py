"""One short sentence that uses the words: what is one, and everything that only looks like one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy_split.words.inflection import forms_of
from policy_split.words.sentence import fault_of, used_words

DOG, CHASE, GREEN = forms_of("noun", "dog"), forms_of("verb", "chase"), forms_of("adjective", "green")
FORMS = [DOG, CHASE, GREEN]
GOOD = [
    "The dog chased a green ball.",
    "My dogs are chasing the greenest cat in town!",
    "Why does that green dog chase its own shadow?",
    "Mr. Smith's dog chases green frogs.",
    "A dog that Dr. J. R. Brown owns chased 3.5 green mice.",
    "“Chase it!” she told the green dog.",
    '"The dog is green," he said, and chased it.',
    "The dog chased the green ball… and lost it.",
    "The green dog chased cats, birds and bees.",
    "It isn't the dog's green ball that he chases.",
    "The U.S. dog chased a green e.g. frog.",
    "Élodie's green dog chased a café owner.",
    "(The green dog chased nobody.)",
    "The dog chased cats, birds, etc. in a green park.",
    "The dog chased the cat down the street and over the hill to the green house.",  # 16 words
]
BAD = {
    "": "it has no words",
    " \n\t": "it has no words",
    "... !!! ???": "it has no words",
    "🐶🏃🟢.": "it has no words",
    "dog chase green": "it does not begin with a capital letter",
    "the dog chased a green ball.": "it does not begin with a capital letter",
    "- The dog chased a green ball.": "it does not begin with a capital letter",
    "1. The dog chased a green ball.": "it does not begin with a capital letter",
    "The dog chased a green ball": "it does not end with a stop",
    "The dog chased a green ball,": "it does not end with a stop",
    "The dog chased a green ball. 🐶": "it does not end with a stop",
    "The dog chased a green": "it does not end with a stop",
    "The dog chased.\nIt was green.": "it has several lines",
    "Dog\nChase\nGreen.": "it has several lines",
    "Here is a sentence: The dog chased a green ball.": "it has a colon: an introduction or a list",
    "The dog chased a ball. It was green.": "it has more than one sentence",
    "The dog chased a ball. it was green.": "it has more than one sentence",
    "The dog chased a ball.It was green.": "it has more than one sentence",
    "The dog chased a ball! The ball was green.": "it has more than one sentence",
    "“Chase it.” The dog was green.": "it has more than one sentence",
    "The dog said no. It chased a green ball.": "it has more than one sentence",
    "The dog chased balls, cats, etc. It was green.": "it has more than one sentence",
    "The dog chased a ball。It was green。": "it has more than one sentence",
    "The dog chased a\u2028green ball.": "it has several lines",
    "The dog chased… The ball was green.": "it has more than one sentence",
    "Dog chases green.": "it has fewer than 4 words",
    "Dog.": "it has fewer than 4 words",
    "The dog chased the cat down the long street and over the hill to the green house.": "it has more than 16 words",
    "The the dog chased a green ball.": "it has 'the' twice in a row",
    "Dog dog dog chase chase green.": "it has 'dog' twice in a row",
    "The dog's dog chased a green ball.": "it has 'dog' twice in a row",
    "The dog chased another DOG and was green.": "it repeats 'dog'",
    "A green dog chased a green ball.": "it repeats 'green'",
    "Words like dog, chase and green.": "it only lists the words",
    "A dog, chase, and green.": "it only lists the words",
    "It says dog; chase, green.": "it only lists the words",
    "The words are dog / chase / green.": "it only lists the words",
    "I use dog and chase and green.": "it only lists the words",
    "I use “dog”, “chase” and “green”.": "it only lists the words",
}


@pytest.mark.parametrize("text", GOOD)
def test_a_sentence_that_uses_the_words(text):
    assert fault_of(text, FORMS) is None
    assert used_words(text, FORMS) == [True, True, True]


@pytest.mark.parametrize(("text", "fault"), BAD.items())
def test_what_is_no_sentence_says_why(text, fault):
    assert fault_of(text, FORMS) == fault


def test_a_very_long_text_costs_nothing():
    for text in ("The dog chased a" + " green" * 400_000, "!" * 1_000_000, "a-" * 500_000, ". " * 500_000 + "A."):
        assert fault_of(text, FORMS) == "it is longer than 2000 characters"
        used_words(text, FORMS)


USES = [
    ("She dogged the catalog, chasers in greenery.", [False, False, False]),  # parts of other words
    ("Dogs chased Greener pastures.", [True, True, True]),
    ("DOG! CHASE! GREEN!", [True, True, True]),
    ("The dog's tail and the dogs' bowl.", [True, False, False]),
    ("The dog’s green tail.", [True, False, True]),
    ("A dog-eared, green-eyed book.", [False, False, False]),  # compounds are other words
    ('The word "dog" means chase.', [False, True, False]),  # named, not used
    ("‘green’ and (dog)", [True, False, False]),
    ("dog_chase_green dog2 2green", [False, False, False]),
    ("d\u200bog ch\u00adase gre\u0301en", [False, False, False]),  # invisible letters, another letter
    ("dоg", [False, False, False]),  # a Cyrillic o
    ("𝐝𝐨𝐠 and ｇｒｅｅｎ", [False, False, False]),
    ("doggo chas gree n", [False, False, False]),
    ("", [False, False, False]),
]


@pytest.mark.parametrize(("text", "used"), USES)
def test_a_word_is_used_as_a_word(text, used):
    assert used_words(text, FORMS) == used


def test_irregular_forms_count_and_look_alikes_do_not():
    run, mouse = forms_of("verb", "run", ["ran", "running"]), forms_of("noun", "mouse", ["mice"])
    assert used_words("The mice ran.", [run, mouse]) == [True, True]
    assert used_words("The mouses runned a runner.", [run, mouse]) == [False, False]
    assert used_words("A café.", [("café",)]) == used_words("A cafe\u0301.", [("café",)]) == [True]


def test_a_longer_sentence_is_one_where_it_may_be():
    text = "The dog chased the cat down the long street and over the hill to the green house."
    assert fault_of(text, FORMS, most_words=17) is None


def test_two_of_the_words_may_be_joined_and_three_without_commas_are_a_sentence():
    old = forms_of("adjective", "old")
    assert fault_of("The old and green dog sleeps.", [DOG, old, GREEN]) is None
    assert fault_of("The green dog chases every bird.", FORMS) is None


@given(st.text(alphabet=st.sampled_from("Aab .,!?…\"'”“’()-:\n\u00e9\u0301é0🐶\u200b")))
def test_whatever_is_written_gets_an_answer(text):
    fault = fault_of(text, FORMS)
    assert fault is None or fault.startswith("it ")
    assert used_words(text, FORMS) == [False, False, False]
