"""Reward functions: what they get, how they are summed, and every way in which they can be wrong."""

import math
import re
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from fractions import Fraction

import numpy
import pytest
import torch

from policy_split.rewards.functions import as_reward_functions, check_columns, compute_rewards, load_reward, reward_name

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
    assert repr(compute(second_only, second_only)) == "[nan, 20.0]"  # left out
    assert repr(compute(lambda completions: numpy.array([None, 3.0], dtype=object))) == "[nan, 3.0]"
    with pytest.warns(UserWarning, match="none of 2 responses has a reward: never, never returned None for each"):
        assert repr(compute(never, never)) == "[nan, nan]"


def never(completions):
    return [None] * len(completions)


def test_a_sum_that_is_too_large_is_an_error():
    with pytest.raises(ValueError, match=r"sample 1 \('yy'\): the weighted sum of its rewards is 4e\+38"):
        compute(lambda completions: [1, 2e38], weights=[2.0])


@pytest.mark.parametrize(
    "values",
    [
        numpy.array([1, 2]),
        torch.tensor([1.0, 2.0]),
        torch.tensor([1.0, 2.0], dtype=torch.bfloat16, requires_grad=True),
        (True, 2),
        [numpy.float32(1), torch.tensor(2)],
        [numpy.True_, numpy.int64(2)],
        [numpy.ones(1), torch.tensor([2.0])],
        [Fraction(1), Decimal("2.0")],
        [1, numpy.array([[2]])],
        (value for value in (1, 2)),
        {1.0: "a", 2.0: "b"}.keys(),
    ],
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
        (3.0, TypeError, "grade returned 3.0, a float; expected a list of 2 numbers"),
        ("ab", TypeError, "grade returned 'ab', a str"),
        (None, TypeError, "grade returned None, a NoneType"),
        ([numpy.ones(2), 1.0], TypeError, r"grade, sample 0 \('x'\): returned array.*, a ndarray of shape \(2,\)"),
        ([1.0, torch.ones(0)], TypeError, r"grade, sample 1 \('yy'\): returned tensor.*, a Tensor of shape \(0,\)"),
        (numpy.ones((2, 1)), TypeError, r"grade, sample 0 \('x'\): returned \[1\.0\], a list"),
        ([1.0, 10**400], ValueError, r"grade, sample 1 \('yy'\): returned 1000.*\.\.\.; expected a finite number"),
        ([1e39, 1.0], ValueError, r"grade, sample 0 \('x'\): returned 1e\+39; expected a finite number that float32"),
        ([1.0, 1j], TypeError, r"grade, sample 1 \('yy'\): returned 1j, a complex"),
        ({0: 1.0, 1: 2.0}, TypeError, "grade returned {0: 1.0, 1: 2.0}, a dict"),
        ({1.0, 2.0}, TypeError, "grade returned {1.0, 2.0}, a set; expected a list"),
        (b"ab", TypeError, "grade returned b'ab', a bytes"),
        (torch.ones(2, device="meta"), TypeError, r"grade returned tensor\(.*a Tensor that cannot be read \(NotImpl"),
        (numpy.float64(1), TypeError, r"grade returned np.float64\(1.0\), a float64; expected a list of 2 numbers"),
        (torch.tensor(1.0), TypeError, r"grade returned tensor\(1.\), a Tensor; expected a list of 2 numbers"),
    ],
)
def test_bad_rewards_name_function_and_sample(values, error, expected):
    def grade(completions):
        return values

    with pytest.raises(error, match=expected):
        compute(grade)


@pytest.mark.parametrize("given", [5, None, {"reward": never}])
def test_what_are_no_functions(given):
    with pytest.raises(TypeError, match=f"reward_funcs is .*, a {type(given).__name__}; expected functions"):
        as_reward_functions(given, None)


def test_a_masked_value_of_an_array_is_none():
    values = numpy.ma.array([1.0, 2.0], mask=[True, False])
    assert repr(compute(lambda completions: values)) == "[nan, 2.0]"


def test_a_functions_own_error_is_passed_on():
    def broken(completions):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        compute(broken)


def test_a_functions_own_error_names_the_sample():
    def broken(completions, answer):
        return [1 / (len(text) - 2) for text in completions]

    def broken_by_many(completions):
        if len(completions) > 1:
            raise RuntimeError("too many")
        return [0.0]

    with pytest.raises(ZeroDivisionError, match=r"\nreward function broken, sample 1 \('yy'\)$"):
        compute(broken, answer=["x", "z"])
    with pytest.raises(RuntimeError, match="broken_by_many, 2 samples at once; it does not fail for any of them alone"):
        compute(broken_by_many)


def compute_within(seconds, function, **columns):
    return compute_rewards(as_reward_functions(function, None, seconds), PROMPTS, TEXTS, IDS, columns)


def sleeps(completions):
    time.sleep(30 if "yy" in completions else 0)
    return [1.0] * len(completions)


def sleeps_and_swallows(completions):
    for _ in range(2):
        try:
            time.sleep(30 if "yy" in completions else 0)
        except Exception:
            return [0.0] * len(completions)
    return [1.0] * len(completions)


def sleeps_and_swallows_everything(completions):
    try:
        time.sleep(30 if "yy" in completions else 0)
    except:  # noqa: E722  (what users write)
        time.sleep(30)
    return [1.0] * len(completions)


def backtracks(completions):
    return [float(bool(re.fullmatch("(a+)+b", "a" * (40 if text == "yy" else 1)))) for text in completions]


@pytest.mark.parametrize("function", [sleeps, sleeps_and_swallows, sleeps_and_swallows_everything, backtracks])
def test_a_function_that_hangs_is_broken_off_and_the_sample_named(function):
    started = time.monotonic()
    name = function.__name__
    with pytest.raises(
        TimeoutError, match=rf"{name} gave no answer within 0\.1 seconds\nreward function {name}, sample 1"
    ):
        compute_within(0.1, function)
    assert time.monotonic() - started < 10


def test_a_time_limit_changes_nothing_for_a_function_that_keeps_it():
    class Grade:
        def __call__(self, completions, answer):
            return [float(text == right) for text, right in zip(completions, answer, strict=True)]

    handler = signal.getsignal(signal.SIGALRM)
    before = signal.getitimer(signal.ITIMER_REAL)[0]
    assert compute_within(5.0, Grade(), answer=["x", "z"]) == [1.0, 0.0]
    assert signal.getsignal(signal.SIGALRM) is handler
    after = signal.getitimer(signal.ITIMER_REAL)[0]
    assert before - 5 < after <= before  # an alarm of somebody else goes on
    assert reward_name(as_reward_functions(Grade(), None, 5.0)[0][0]) == "Grade"
    with pytest.raises(ValueError, match="Grade needs answer"):
        check_columns(as_reward_functions(Grade(), None, 5.0), ["prompt"])


def test_an_alarm_of_somebody_else_goes_on():
    rang = []
    handler = signal.signal(signal.SIGALRM, lambda *_: rang.append(True))
    remaining = signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        compute_within(5.0, lambda completions: time.sleep(0.1) or [0.0] * len(completions))
        time.sleep(0.05)
    finally:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *remaining)
    assert rang == [True]


def test_a_time_limit_needs_the_main_thread():
    with ThreadPoolExecutor(1) as pool, pytest.raises(RuntimeError, match="needs the main thread of a Unix process"):
        pool.submit(compute_within, 1.0, lengths).result()


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
