"""Different problems: what the splits hold, what a training asks, and the command that prints both."""

import itertools
from dataclasses import replace

import pytest

from policy_split.commands.main import main
from policy_split.countdown.pool import different, pool_of
from policy_split.countdown.problems import SPLITS, Countdown, Problem
from policy_split.countdown.sizes import SIZES
from policy_split.countdown.solutions import answer_counts


def test_a_pool_counts_every_problem_once():
    task = Countdown(test_share=0.3)
    found = {
        Problem(numbers, target)
        for numbers in itertools.product(range(1, 10), repeat=3)
        if list(numbers) == sorted(numbers)
        for target, answers in answer_counts(numbers)
        if target <= 30 and answers >= 4
    }
    pool = pool_of(task)
    assert pool.exact
    assert pool.problems == {split: sum(task.split_of(p) == split for p in found) for split in SPLITS}
    assert sum(pool.problems.values()) == 941
    assert different([Problem((3, 5, 2), 16), Problem((2, 5, 3), 16), Problem((2, 5, 3), 17)]) == 2


def test_a_sample_of_the_sets_estimates_the_pool():
    task = Countdown(3, 30, 60, fewest_answers=2)
    exact, sampled = pool_of(task), pool_of(task, exact_up_to=1000)
    assert exact.exact
    assert not sampled.exact
    for split in ("train", "held_out"):
        assert sampled.problems[split] == pytest.approx(exact.problems[split], rel=0.05)
    assert sampled.problems["test"] == 0


def test_the_study_s_size_cannot_be_learnt_by_heart():
    size = SIZES["study"]
    pool = pool_of(size.task)
    assert pool.exact
    assert pool.problems == {"train": 60643, "held_out": 7587, "test": 7613}
    assert size.train_questions >= 50_000
    assert min(pool.problems.values()) >= 10 * size.held_out_questions


def test_each_once_is_in_one_order_of_the_numbers():
    task, once = Countdown(), Countdown(each_once=True)
    assert different(once.problems(500, seed=1)) == 500 > different(task.problems(500, seed=1))
    assert once.problems(100, seed=1) == once.problems(500, seed=1)[:100]
    assert {once.split_of(problem) for problem in once.problems(500, seed=1)} == {"train"}
    with pytest.raises(ValueError, match="different problems in its split 'train', not 755"):
        once.problems(755, seed=0)
    assert len(once.problems(754, seed=0)) == 754  # the whole split


def test_the_command_prints_the_counts(capsys):
    assert main(["countdown", "--size", "minute", "--seed", "1"]) == 0
    title, _, row = capsys.readouterr().out.splitlines()
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:8] == [
        *("minute", "3 of 1 to 9", "1 to 30, 4 or more answers", "754", "187", "0"),
        *("3,000", str(different(SIZES["minute"].task.problems(3000, seed=1)))),
    ]
    assert [cell.strip() for cell in title.strip("|").split("|")][3:6] == ["train", "held out", "test"]


def test_fresh_questions_are_different_problems_as_far_as_the_pool_reaches():
    size = replace(SIZES["minute"], train_questions=300)
    rows = size.training_questions(1, fresh=True)
    assert len({(tuple(sorted(row["numbers"])), row["target"]) for row in rows}) == len(rows) == 300
    assert size.training_questions(1, fresh=False)["prompt"] == size.task.dataset(300, seed=1)["prompt"]
    assert len(replace(size, train_questions=3000).training_questions(1, fresh=True)) == 754  # all that there are
