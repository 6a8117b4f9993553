"""Processes of a reward live and die inside a training as they do outside, and Ctrl-C still saves the run."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import forking_rewards
import pytest
import tiny

from policy_split.training.trainer import PolicySplitTrainer

SUPPORT = Path(tiny.__file__).parent


def lines(script, folder, seconds):
    """What a script of the helpers prints, in a process that has this one's packages and no GPU."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SUPPORT)}
    command = [sys.executable, "-W", "ignore", SUPPORT / script, folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_processes_of_a_reward_end_as_they_do_outside_of_a_training(tmp_path):
    said = lines("forking_process.py", tmp_path, 120)
    assert [each["way"] for each in said] == [*forking_rewards.WAYS, "DataLoader"]
    for each in said:
        assert each["inside"] == [each["outside"]], each
        assert each["seconds"] < 15, each
    outside = {each["way"]: each["outside"] for each in said}
    assert outside["pool, fork"] == [1 / 6, 2 / 6]
    assert outside["terminate"] == outside["program"] == [-15, -15]
    assert outside["interrupt"] == [1, 1]
    assert outside["os.fork, SIGTERM"] == [15, 15]
    assert outside["os.fork, SIGINT"] == [-7, -7]
    assert outside["alarm"] == [14, 14]


def test_ctrl_c_saves_the_run_and_leaves_no_process(tmp_path):
    said = lines("interrupted_process.py", tmp_path, 200)
    assert len(said) == 8
    for each in said:
        assert each["left"] == [], each
        assert each["same"], each
        assert each["seconds"] < 15, each
        # what cannot be graded any more costs the step in progress; the one before it is saved
        if each["way"] == "never_again":
            assert each["ended"].startswith("stopped; the step in progress could not be finished (TimeoutError: ")
            assert each["ended"].endswith("checkpoints/checkpoint-1)")
            assert each["checkpoints"] == ["checkpoint-1"], each
        else:
            assert each["ended"] == "stopped after step 2 of 3, which is saved", each
            assert each["checkpoints"] == ["checkpoint-2"], each


def test_a_training_in_another_thread(tmp_path):
    def run():
        trainer = PolicySplitTrainer(
            tiny.model(), tiny.tokenizer(), tiny.reward, tiny.QUESTIONS, tiny.config(tmp_path, max_steps=2)
        )
        done.append(trainer.train()["step"])

    done = []
    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    assert done == [2]


def test_a_time_limit_that_a_thread_cannot_hold_is_refused_before_anything_is_sampled(tmp_path):
    calls, said = [], []

    def run():
        config = tiny.config(tmp_path, reward_timeout=1.0)
        trainer = PolicySplitTrainer(tiny.model(), tiny.tokenizer(), tiny.reward, tiny.QUESTIONS, config)
        trainer.step = lambda: calls.append("sampled")
        with pytest.raises(RuntimeError, match=r"reward_timeout=1\.0 needs the main thread of a Unix process"):
            trainer.train()
        said.append("refused")

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    assert (calls, said) == ([], ["refused"])
