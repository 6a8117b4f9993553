"""What is optional: used where it is installed, and named where it is asked for and missing."""

import importlib.util
import json

import pytest

from policy_split import extras
from policy_split.commands.main import main
from policy_split.data.datasets import load_prompts
from policy_split.report.plot import plot_run
from policy_split.rewards.math import math_reward

STEP = {"policy_split/kl_high_normal": 0.1, "policy_split/kl_normal_high": 0.2}
STEP |= {f"{mode}/{name}": 0.5 for mode in ("normal", "high_entropy") for name in ("reward", "entropy")}


@pytest.fixture
def run(tmp_path):
    lines = [json.dumps({"step": step, **STEP}) for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.mark.parametrize(
    ("ask", "extra"),
    [
        (lambda run: plot_run(run), "plot"),
        (lambda run: math_reward(["1"], answer=["1"]), "math"),
        (lambda run: load_prompts("reasoning-gym:chain_sum"), "reasoning-gym"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, run, ask, extra):
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=rf"needs the package .*: pip install policy-split\[{extra}\]"):
        ask(run)


def test_a_plot_of_nothing(tmp_path, capsys):
    assert main(["plot", str(tmp_path)]) == 2
    assert "metrics.jsonl: there is no such file" in capsys.readouterr().err
    (tmp_path / "metrics.jsonl").write_text("")
    assert main(["plot", str(tmp_path)]) == 2
    assert "no step has been written yet" in capsys.readouterr().err


@pytest.mark.skipif(not importlib.util.find_spec("matplotlib"), reason="the extra plot is not installed")
def test_plot(run, capsys):
    assert main(["plot", str(run)]) == 0
    assert f"curves: {run / 'curves.png'}" in capsys.readouterr().out
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(not importlib.util.find_spec("matplotlib"), reason="the extra plot is not installed")
def test_plot_of_a_run_with_one_mode_and_without_every_number(tmp_path, capsys):
    rows = [{"step": 1, "normal/reward": 0.5, "normal/entropy": None}, {"step": 2, "normal/reward": None}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["plot", str(tmp_path)]) == 0
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(not importlib.util.find_spec("math_verify"), reason="the extra math is not installed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_math_reward():
    completions = ["so it is $\\frac{1}{2}$", [{"role": "assistant", "content": "0.5"}], "I do not know", "3"]
    assert math_reward(completions, answer=["0.5", "1/2", "0.5", 4]) == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.skipif(not importlib.util.find_spec("reasoning_gym"), reason="the extra reasoning-gym is not installed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_reasoning_gym():
    questions = load_prompts("reasoning-gym:chain_sum")
    assert len(questions) == 2000
    assert {"prompt", "answer", "entry", "task"} <= set(questions.column_names)
    with pytest.raises(ValueError, match="reasoning-gym:no_such_task"):
        load_prompts("reasoning-gym:no_such_task")
