"""A study's trainer on one thread of a CPU: a step's time is the processor's, whatever else the machine does."""

import time

import pytest
import tiny
import torch

from policy_split.study.milestones import MeasuredTrainer


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def slow_reward(*arguments, **columns):
    time.sleep(0.3)
    return tiny.reward(*arguments, **columns)


@pytest.mark.parametrize("count", [1, 2])
def test_waiting_is_no_part_of_it(tmp_path, threads, count):
    threads(count)
    run = MeasuredTrainer(tiny.model(), tiny.tokenizer(), slow_reward, tiny.QUESTIONS, tiny.config(tmp_path))
    started = time.perf_counter()
    metrics, _ = run.step()
    passed = time.perf_counter() - started
    if count == 1:
        assert 0 < metrics["step_time"] < passed - 0.29
    else:
        assert 0.3 < metrics["step_time"] <= passed
