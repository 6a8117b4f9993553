"""The grader: what it accepts, what it refuses, and what hostile text costs."""

import random
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy_split.countdown.expressions import Limits, evaluate


@pytest.mark.parametrize(
    ("text", "value", "numbers", "canonical"),
    [
        ("7", 7, (7,), "7"),
        ("3 5 + 2 *", 16, (3, 5, 2), "3 5 + 2 *"),
        ("(3+5)*2", 16, (3, 5, 2), "3 5 + 2 *"),
        ("  ( 3 + 5 )\t*\n2 ", 16, (3, 5, 2), "3 5 + 2 *"),
        ("2*(3+5)", 16, (2, 3, 5), "2 3 5 + *"),
        ("3 + 5 * 2", 13, (3, 5, 2), "3 5 2 * +"),
        ("8 - 3 - 2", 3, (8, 3, 2), "8 3 - 2 -"),
        ("8 / 4 / 2", 1, (8, 4, 2), "8 4 / 2 /"),
        ("8 - (3 - 2)", 7, (8, 3, 2), "8 3 2 - -"),
        ("1 / 3", Fraction(1, 3), (1, 3), "1 3 /"),
        ("1 3 -", -2, (1, 3), "1 3 -"),
        ("0 5 /", 0, (0, 5), "0 5 /"),
        ("((007))", 7, (7,), "7"),
        ("3 5+2*", 16, (3, 5, 2), "3 5 + 2 *"),
    ],
)
def test_valid(text, value, numbers, canonical):
    evaluation = evaluate(text)
    assert evaluation.value == value
    assert evaluation.numbers == numbers
    assert evaluation.canonical == canonical


@pytest.mark.parametrize(
    "text",
    [
        *[
            "",
            " ",
            "+",
            "3 5",
            "3 +",
            "+ 3 5",
            "3 5 + +",
            "3 5 2 +",
            "()",
            "(3",
            "3)",
            ")3(",
            "(3 5 +)",
            "2(3)",
            "(2)(3)",
            "(2)3",
        ],
        *[
            "-3",
            "+3",
            "3 + -5",
            "3 ++ 5",
            "3 ** 5",
            "3 // 5",
            "3 % 5",
            "3 = 3",
            "3.0",
            "1e3",
            "1_000",
            "0x10",
            "x",
            "3 + 5;",
        ],
        *["1 / 0", "1 0 /", "5 / (3 - 3)", "0 / 0", "1 2 2 - /"],
        *[
            "\u0663",
            "\u00b2",
            "3\u00b2",
            "\uff13",
            "3 \u00d7 5",
            "3\u00a05 +",
            "3\u20285 +",
            "\x00",
            "3\x00",
            "\ud800",
            "3 5 +\udfff",
        ],
        *["9**9**9", "__import__('os')", "9" * 10, "(" * 100 + "1" + ")" * 100, "1 " * 20 + "+ " * 19],
    ],
)
def test_invalid(text):
    assert evaluate(text) is None


@pytest.mark.parametrize("value", [None, 3, 3.0, b"3", ["3"], object()])
def test_not_text(value):
    assert evaluate(value) is None


@pytest.mark.parametrize(
    ("inside", "beyond", "limits"),
    [
        ("1+1 ", "1 + 1", Limits(characters=4)),
        ("1 + 1", "1 + 1 + 1", Limits(tokens=3)),
        ("12 + 12", "123 + 1", Limits(digits=2)),
        ("((1))", "(((1)))", Limits(depth=2)),
        ("1 2 + 3 +", "1 2 3 + +", Limits(depth=2)),
        ("10 * 10", "10 * 11", Limits(magnitude=100)),
        ("1 / 100", "1 / 101", Limits(magnitude=100)),
        ("0 - 100", "0 - 101", Limits(magnitude=100)),
    ],
)
def test_each_bound_is_inclusive(inside, beyond, limits):
    assert evaluate(inside, limits) is not None
    assert evaluate(beyond, limits) is None
    assert evaluate(beyond) is not None


def test_ten_thousand_hostile_texts_are_cheap():
    megabyte = 1_000_000
    large = [
        "(" * megabyte,
        "9" * megabyte,
        " " * megabyte,
        "1+" * (megabyte // 2),
        "\u0663" * megabyte,
        "1 " * (megabyte // 2) + "+",
    ]
    small = [
        "(" * 128 + "1" + ")" * 127,
        "9**9**9",
        "9 * " * 60 + "9",
        "999999999 " * 16 + "* " * 15,
        "1 0 /",
        "\x00" * 256,
    ]
    small += [
        "\ud800",
        "",
        "٣ ٥ +",
        "²",
        "1/" * 127 + "3",
        ")" * 256,
        "0" * 256,
        "- " * 128,
        "1 1 - " * 40,
        "\u202e3 5 +",
    ]
    noise = random.Random(0)
    texts = [noise.choice(large) for _ in range(4000)] + [noise.choice(small) for _ in range(2000)]
    texts += [noise.randbytes(noise.randrange(256)).decode("latin-1") for _ in range(2000)]
    texts += ["".join(noise.choices("0123456789+-*/() \x00", k=noise.randrange(256))) for _ in range(2000)]
    assert len(texts) == 10_000
    start = time.perf_counter()
    for text in texts:
        evaluate(text)
    assert time.perf_counter() - start < 5


@given(
    st.one_of(
        st.text(),
        st.text("0123456789+-*/() ", max_size=40),
        st.text(st.characters(categories=["Nd", "Cs", "No", "Zs"])),
    )
)
def test_never_raises_and_agrees_with_its_own_canonical_form(text):
    evaluation = evaluate(text)
    if evaluation is not None:
        assert set(text) <= set("0123456789+-*/() \t\r\n")
        assert evaluate(evaluation.canonical) == evaluation


def combine(parts):
    """(text, value) of an operation on two (text, value) pairs, the value None where a division by zero is inside."""
    (left, x), operator, (right, y) = parts
    if x is None or y is None or (operator == "/" and y == 0):
        return f"({left} {operator} {right})", None
    return f"({left} {operator} {right})", {"+": x + y, "-": x - y, "*": x * y, "/": x / y if y else None}[operator]


integers = st.integers(0, 99).map(lambda number: (str(number), Fraction(number)))
trees = st.recursive(integers, lambda tree: st.tuples(tree, st.sampled_from("+-*/"), tree).map(combine), max_leaves=6)


@given(trees, st.booleans())
def test_infix_trees_have_the_value_that_they_were_built_with(tree, spaced):
    text, expected = tree
    evaluation = evaluate(text if spaced else text.replace(" ", ""))
    assert (None if evaluation is None else evaluation.value) == expected
