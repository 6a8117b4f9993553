"""The solver against the slow one that it replaced, by hand, and where 64 bits or a zero could mislead it."""

import exhaustive_solver as slow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy_split.countdown import solutions as fast

NUMBERS = st.integers(2, 4).flatmap(lambda n: st.lists(st.integers(1, 60), min_size=n, max_size=n))


@settings(max_examples=40, deadline=None)
@given(NUMBERS)
def test_the_answers_are_those_of_the_slow_solver(numbers):
    counts = fast.answer_counts(numbers)
    assert counts == slow.answer_counts(numbers)
    for target, count in counts[:: max(1, len(counts) // 4)]:
        found = fast.solutions(numbers, target)
        assert found == slow.solutions(numbers, target)
        assert len(found) == count


@pytest.mark.parametrize("numbers", [(1, 2, 3, 4, 5), (2, 2, 2, 2, 2), (7, 7, 1, 1, 9)])
def test_five_numbers(numbers):
    assert fast.answer_counts(numbers) == slow.answer_counts(numbers)
    assert fast.solutions(numbers, 1) == slow.solutions(numbers, 1) != []


@pytest.mark.parametrize(
    ("numbers", "target", "answers"),
    [
        ([2, 3], 6, ["2 3 *", "3 2 *"]),
        ([2, 2], 4, ["2 2 *", "2 2 +"]),  # equal numbers: each text once
        ([1, 1, 0], 1, slow.solutions([1, 1, 0], 1)),  # 1 / 0 on the way is no number, and neither is 1 / (1 / 0)
        ([0, 0], 0, ["0 0 *", "0 0 +", "0 0 -"]),
        ([-3, 5], -15, ["-3 5 *", "5 -3 *"]),
        ([5], 5, []),
        ([], 0, []),
        ([2, 3], 10**30, []),
    ],
)
def test_edges(numbers, target, answers):
    assert fast.solutions(numbers, target) == answers


def test_numbers_beyond_64_bits():
    numbers = [10**9 + 7, 10**9 + 9, 10**9 + 21, 2]
    assert fast.answer_counts(numbers) == slow.answer_counts(numbers)
    assert fast.solutions(numbers, (10**9 + 7) * (10**9 + 9) * (10**9 + 21) * 2)
    for near in (2**19, 2**20, 2**20 + 7):  # on both sides of the bound at which int64 is left
        assert fast.answer_counts([near, near - 1, 3]) == slow.answer_counts([near, near - 1, 3])
