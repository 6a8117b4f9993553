"""The profile of a step names every phase, by functions put around the trainer's own, which have to be there."""

import importlib

import pytest

SMALL = ["--warm-start-steps", "2", "--steps", "1"]


@pytest.fixture
def profile(monkeypatch):
    return importlib.import_module("benchmarks.trainer.profile")


def test_every_phase_has_its_row(profile, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["profile", *SMALL, "--algorithms", "policy_split"])
    profile.main()
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    milliseconds = {row[1].strip(): float(row[2].strip(" *")) for row in rows[2:-1]}
    for phase in {*profile.MODEL, *profile.OWN} - {profile.SCORING, profile.SCORE}:  # scored with the update
        assert milliseconds[phase] > 0, phase
    parts = sum(milliseconds[phase] for phase in (*profile.MODEL, *profile.OWN))
    assert milliseconds["**a step**"] == pytest.approx(parts, rel=0.02)


def test_batches_compute_no_more_tokens_than_they_have(profile, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["profile", *SMALL, "--batches", "--batch-sizes", "8"])
    profile.main()
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| pa")]
    tokens = {row[1].strip(): int(row[2].replace(",", "")) for row in rows}
    assert tokens["packed"] <= tokens["padded, by length"] <= tokens["padded, as drawn"]
