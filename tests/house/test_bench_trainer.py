"""The comparison of trainers, at a size of seconds: every figure that it prints is there and adds up."""

import json
import sys

import pytest

from benchmarks.trainer import compare


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_two_trainers_side_by_side(tmp_path, capsys):
    trainers = list(compare.TRAINERS[1:3])
    compare.main(["--sizes", "tiny", "--rounds", "1", "--output", str(tmp_path), "--trainers", *trainers])
    (written,) = tmp_path.glob("trainer-*.json")
    runs = json.loads(written.read_text())["sizes"]["tiny"]["runs"]
    assert [run["trainer"] for run in runs] == trainers
    for run, tokens in zip(runs, (2 * 4 * 4, 2 * 2 * 4 * 4), strict=True):
        assert run["trained_tokens"] == tokens
        assert set(run["phases"]) <= set(compare.PHASES)
        assert sum(run["phases"].values()) == pytest.approx(run["seconds"])
        assert 0 < run["phases"]["generation"] < run["seconds"]
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ours")]
    assert next(line.split("|")[7].strip() for line in table) == "1.00"
