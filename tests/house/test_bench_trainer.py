"""The benchmarks of trainers, at sizes of seconds: every figure that they print is there and adds up."""

import json
import sys

import psutil
import pytest
import torch
from fake_engine import FakeEngine

from benchmarks.trainer import arithmetic, busy, compare, rollout_engines, shared_prompts
from policy_split.rollouts import sampler


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_trainers_side_by_side(tmp_path, capsys):
    trainers = list(compare.OURS)
    compare.main(["--sizes", "tiny", "--rounds", "1", "--output", str(tmp_path), "--trainers", *trainers])
    (written,) = tmp_path.glob("trainer-*.json")
    runs = json.loads(written.read_text())["sizes"]["tiny"]["runs"]
    assert [run["trainer"] for run in runs] == trainers
    for run, tokens in zip(runs, (2 * 4 * 4, 2 * 2 * 4 * 4, 2 * 2 * 4 * 4), strict=True):
        assert run["trained_tokens"] == tokens
        assert set(run["phases"]) <= set(compare.PHASES)
        assert sum(run["phases"].values()) == pytest.approx(run["seconds"])
        assert 0 < run["phases"]["generation"] < run["seconds"]
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ours")]
    assert next(line.split("|")[7].strip() for line in table) == "1.00"


def rows_of(said: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in said.splitlines() if line[:1] == "|"]


def test_shared_prompts_save_what_the_lengths_say(capsys):
    shared_prompts.main(["--sizes", "5:3", "2:4", "--rows", "4", "--rounds", "1"])
    head, _, *rows = rows_of(capsys.readouterr().out)
    # the last token of a response predicts nothing
    assert [row[:3] for row in rows] == [["5:3", "28", str(5 + 4 * 2)], ["2:4", "20", str(2 + 4 * 3)]]
    for row in rows:
        assert len(row) == len(head)
        assert all(float(cell) >= 0 for cell in row[3:])


def test_both_rollout_engines_answer_the_same_prompts(capsys, monkeypatch):
    monkeypatch.setattr(sampler, "VllmEngine", FakeEngine)
    monkeypatch.setattr(sampler, "check_vllm", lambda: None)
    sizes = ["--questions", "2", "--responses", "1", "--prompt", "3", "--tokens", "2", "--rounds", "1"]
    rollout_engines.main(["--dtypes", "float32", *sizes])
    _, _, *rows = rows_of(capsys.readouterr().out)
    assert [row[:3] for row in rows] == [["float32", "transformers", "8"], ["float32", "vllm", "8"]]
    assert all(float(cell) > 0 for row in rows for cell in row[3:5])
    assert float(rows[1][7]) < 1e-5
    assert all(0 < float(row[8]) < 1e-5 for row in rows)


def test_arithmetic_compares_each_with_its_other(capsys):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        arithmetic.main(["--widths", "16", "--rounds", "1"])
    finally:
        torch.set_num_threads(before)
    head, _, row = rows_of(capsys.readouterr().out)
    of = dict(zip(head, row, strict=True))
    for name in ("one", "all"):
        expected = float(of[f"{name}, ms"]) / float(of[f"{name}, bf16, ms"])
        assert float(of[f"bf16 faster, {name}"]) == pytest.approx(expected, rel=0.1)


def test_busy_neighbours_are_there_and_are_ended(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(busy, "HOW", {"one way": {}})
    monkeypatch.setattr(busy, "measured", lambda how, size: seen.append(children()) or float(len(seen)))
    busy.main(["--rounds", "1", "--processes", "2"])
    assert [number - children() for number in seen] == [0, 2]
    assert rows_of(capsys.readouterr().out)[2] == ["one way", "1.00", "2.00", "2.0"]


def children() -> int:
    return len(psutil.Process().children())
