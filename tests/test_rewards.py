"""Reward functions: what they get, how they are summed, and every way in which they can be wrong."""

import math
import sys

import numpy
import pytest
import torch

from policy_split.rewards import as_reward_functions, check_columns, compute_rewards, load_reward

PROMPTS, TEXTS, IDS = ["p", "q"], ["x", "yy"], [[5], [6, 7]]


def compute(*functions, weights=None, prompts=PROMPTS, **columns):
    return compute_rewards(as_reward_functions(list(functions), weights), prompts, TEXTS, IDS, columns)


def lengths(completions, **columns):
    return [len(text) for text in completions]


def test_arguments_are_trls():
    seen = {}

    def reward(prompts, completions, **columns):
        seen.update(columns, prompts=prompts, completions=completions)
        return [0.0, 1.0]

    assert compute(reward, answer=["a", "b"]) == [0.0, 1.0]
    assert seen == {"prompts": PROMPTS, "completions": TEXTS, "completion_ids": IDS, "answer": ["a", "b"]}


def test_chat_prompts_get_chat_completions():
    chat = [{"role": "user", "content": "p"}]
    seen = []
    compute(lambda completions: seen.extend(completions) or [0, 0], prompts=[chat, chat])
    assert seen == [[{"role": "assistant", "content": "x"}], [{"role": "assistant", "content": "yy"}]]


def test_a_function_without_kwargs_gets_what_it_names():
    def equal(completions, answer):
        return [float(text == right) for text, right in zip(completions, answer, strict=True)]

    assert compute(equal, answer=["x", "z"]) == [1.0, 0.0]


def test_weighted_sum_and_none():
    def second_only(completions, **columns):
        return [None, 10.0]

    assert compute(lengths, second_only, weights=[2.0, 0.5]) == [2.0, 9.0]


@pytest.mark.parametrize(
    "values", [numpy.array([1, 2]), torch.tensor([1.0, 2.0]), (True, 2), [numpy.float32(1), torch.tensor(2)]]
)
def test_kinds_of_numbers(values):
    assert compute(lambda completions: values) == [1.0, 2.0]


@pytest.mark.parametrize(
    ("values", "error", "expected"),
    [
        ([1.0], ValueError, "grade returned 1 rewards for 2 completions"),
        ([1.0, math.nan], ValueError, r"grade, sample 1 \('yy'\): returned nan"),
        ([math.inf, 1.0], ValueError, r"grade, sample 0 \('x'\): returned inf"),
        ([1.0, "2"], TypeError, r"grade, sample 1 \('yy'\): returned '2', a str"),
        ([[1.0], 2.0], TypeError, "grade, sample 0"),
        (3.0, TypeError, "grade returned float; expected a list of 2 numbers"),
        ("ab", TypeError, "grade returned str"),
        (None, TypeError, "grade returned NoneType"),
        ([None, 1.0], ValueError, r"sample 0 \('x'\) has no reward: grade returned None"),
    ],
)
def test_bad_rewards_name_function_and_sample(values, error, expected):
    def grade(completions):
        return values

    with pytest.raises(error, match=expected):
        compute(grade)


def test_a_functions_own_error_is_passed_on():
    def broken(completions):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        compute(broken)


def test_missing_column_is_named():
    def grade(completions, answer, bonus=1, **columns):
        return []

    with pytest.raises(
        ValueError, match="grade needs answer; it can have completion_ids, completions, numbers, prompts"
    ):
        check_columns(as_reward_functions(grade, None), ["prompt", "numbers"])
    check_columns(as_reward_functions(grade, None), ["prompt", "answer"])


def test_reward_funcs():
    assert as_reward_functions(lengths, None) == [(lengths, 1.0)]
    with pytest.raises(ValueError, match="empty"):
        as_reward_functions([], None)
    with pytest.raises(TypeError, match="holds 3, a int"):
        as_reward_functions([3], None)
    with pytest.raises(ValueError, match="one weight for each of the 1 reward functions"):
        as_reward_functions([lengths], [1.0, 2.0])


def test_load_reward(tmp_path, monkeypatch):
    path = tmp_path / "mine.py"
    path.write_text("scale = 3\ndef grade(completions): return [1.0 for _ in completions]\n")
    assert load_reward(f"{path}:grade")(completions=["x"]) == [1.0]
    monkeypatch.syspath_prepend(tmp_path)
    assert load_reward("mine:grade") is sys.modules["mine"].grade
    for spec, error, expected in (
        ("mine", ValueError, "must be 'package.module:function'"),
        ("mine:other", ValueError, "mine has no 'other'; its functions are grade"),
        ("mine:scale", TypeError, "scale is a int, not a function"),
        ("nothing_here:grade", ModuleNotFoundError, "there is no module 'nothing_here'"),
        (f"{tmp_path}/other.py:grade", FileNotFoundError, r"there is no file .*other\.py"),
    ):
        with pytest.raises(error, match=expected):
            load_reward(spec)
