"""Fresh questions: none twice before each has come once, a function of (seed, step), rows of one prompt are one."""

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from policy_split.data.datasets import as_prompts, question_indices
from policy_split.data.order import QuestionOrder


def order(prompts, *, fresh=True):
    return QuestionOrder(as_prompts(Dataset.from_dict({"prompt": prompts})), fresh)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=12), st.integers(1, 5), st.integers(0, 99))
def test_every_pass_asks_each_different_question_once(prompts, per_step, seed):
    made, different = order(prompts), sorted(set(prompts))
    steps = -(-3 * len(different) // per_step)
    rows = [row for step in range(steps) for row in made.rows(seed, step, per_step)]
    assert all(0 <= row < len(prompts) for row in rows)
    for start in range(0, 3 * len(different) - len(different) + 1, len(different)):
        assert sorted(prompts[row] for row in rows[start : start + len(different)]) == different


def test_each_pass_takes_another_row_of_a_question():
    made = order(["a", "b", "a", "a"])
    rows = [row for step in range(4) for row in made.rows(seed=3, step=step, prompts_per_step=2)]
    assert [row for row in rows if row != 1] == [0, 2, 3, 0]


def test_without_it_rows_are_what_they_were():
    made = order(["a", "a", "b", "c"], fresh=False)
    for step in range(5):
        assert made.rows(7, step, 3) == question_indices(4, 7, step, 3)


def test_questions_of_messages_and_of_lists_are_told_apart():
    talk = [[{"role": "user", "content": text}] for text in ("a", "b", "a")]
    made = QuestionOrder(as_prompts([{"prompt": each} for each in talk]), True)
    assert made.questions == [[0, 2], [1]]


@pytest.mark.parametrize("seed", [0, 5])
def test_a_step_is_a_function_of_seed_and_step(seed):
    made = order(list("abcdefgh"))
    assert made.rows(seed, 4, 3) == order(list("abcdefgh")).rows(seed, 4, 3)
    assert made.rows(seed, 0, 8) != made.rows(seed + 1, 0, 8)
