"""Threads of the CPU: chosen by measurement where nobody has chosen, kept with the run, and asleep while they wait."""

import os
import subprocess
import sys

import pytest
import tiny
import torch
import yaml

from policy_split.config import PolicySplitConfig
from policy_split.training.threads import choose_threads, fastest
from policy_split.training.trainer import PolicySplitTrainer


@pytest.fixture(autouse=True)
def threads_as_before(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({1: 1.0, 2: 0.5, 4: 0.3}, 4),
        ({1: 1.0, 2: 0.5, 4: 0.49}, 2),  # 2 % are not worth two cores
        ({1: 1.0, 2: 1.2, 4: 0.8}, 4),
        ({1: 1.0, 2: 0.96, 4: 0.97}, 1),
        ({1: 0.1, 2: 10.0, 4: 10.0}, 1),
    ],
)
def test_the_least_number_that_is_clearly_fastest(seconds, chosen):
    assert fastest(seconds.__getitem__, [1, 2, 4]) == chosen


def test_the_best_of_several_rounds_counts():
    taken = {1: iter([1.0] * 9), 2: iter([9.0, 9.0, 0.5, 9.0, 9.0])}  # another process came and went
    assert fastest(lambda count: next(taken[count]), [1, 2]) == 2


def trainer(folder, **options):
    config = tiny.config(folder, max_steps=1, **options)
    return PolicySplitTrainer(tiny.model(), tiny.tokenizer(), tiny.reward, [{"prompt": "1 2"}], config)


def test_the_choice_is_in_the_config_and_in_force(tmp_path, monkeypatch, capsys):
    run = trainer(tmp_path)
    torch.set_num_threads(2)
    monkeypatch.setattr("policy_split.training.threads.fastest", lambda seconds, counts: (seconds(2), counts[0])[1])
    choose_threads(run)
    assert run.config.num_threads == torch.get_num_threads() == 1
    assert "1 of 2 threads" in capsys.readouterr().err


@pytest.mark.parametrize("decided", ["flag", "environment", "one core"])
def test_who_has_decided_is_obeyed(tmp_path, monkeypatch, decided):
    torch.set_num_threads(1 if decided == "one core" else 3)
    run = trainer(tmp_path, num_threads=2 if decided == "flag" else None)
    if decided == "environment":
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr("policy_split.training.threads.fastest", None)
    choose_threads(run)
    assert torch.get_num_threads() == {"flag": 2, "environment": 3, "one core": 1}[decided]
    assert run.config.num_threads == (2 if decided == "flag" else None)


@pytest.mark.parametrize("count", [0, -1, 1.5, True])
def test_a_number_of_threads_that_is_none(count):
    with pytest.raises(ValueError, match="num_threads"):
        PolicySplitConfig("x", num_threads=count)


def test_the_command_lets_threads_sleep_while_they_wait():
    script = (
        "import os, policy_split.commands.main as m\n"
        "seen = os.environ.get\n"
        "m.find_command = lambda name: print(seen('OMP_WAIT_POLICY'), seen('GOMP_SPINCOUNT')) or (lambda given: 0)\n"
        "m.main(['train'])"
    )
    environment = {
        name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    }

    def said(**more):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment | more)
        return done.stdout

    assert said() == "None 2000\n"
    assert said(OMP_WAIT_POLICY="active") == "active None\n"
    assert said(GOMP_SPINCOUNT="7") == "None 7\n"


def test_config_yaml_says_how_many(tmp_path, monkeypatch):
    run = trainer(tmp_path / "run")
    torch.set_num_threads(2)
    monkeypatch.setattr("policy_split.training.threads.fastest", lambda seconds, counts: counts[-1])
    choose_threads(run)
    run.train()
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["num_threads"] == 2
