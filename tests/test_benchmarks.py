"""The benchmarks run, and measure what they say."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
specification = importlib.util.spec_from_file_location("interleave", ROOT / "benchmarks" / "interleave.py")
interleave = importlib.util.module_from_spec(specification)
specification.loader.exec_module(interleave)


def test_every_candidate_runs_once_in_each_round_and_its_turn_rotates():
    calls = []
    seconds = interleave.interleaved(
        {name: lambda k, name=name: calls.append((k, name)) for name in "abc"}, rounds=3, warmup=1
    )
    assert [len(times) for times in seconds.values()] == [3, 3, 3]
    rounds = [[name for k, name in calls if k == turn] for turn in range(3)]
    assert rounds == [list("abc"), list("bca"), list("cab")]


def test_ratio_is_taken_round_by_round():
    """The machine was twice as slow in the second round: both candidates alike."""
    assert interleave.ratio({"slow": [2.0, 4.0, 2.0], "fast": [1.0, 2.0, 1.0]}, "slow", "fast") == pytest.approx(2.0)


def test_gpu_script_runs_where_there_is_no_gpu(tmp_path):
    sizes = ["--device", "cpu", "--tokens", "70", "--vocabulary", "130", "--rounds", "2", "--dtype", "float32"]
    command = [sys.executable, "-m", "benchmarks.gpu", *sizes, "--output", str(tmp_path / "x.json")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    (result,) = json.loads((tmp_path / "x.json").read_text())["results"]
    assert result["tokens"] == 70
    assert set(result["faster"]) == {
        "forward than eager", "forward than compile", "loss than eager", "loss than compile",
    }  # fmt: skip
