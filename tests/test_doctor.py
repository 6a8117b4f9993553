"""policy-split doctor: what is there, what is missing, what is broken, and kernels that compute wrongly."""

import json

import pytest
import torch

from policy_split import cli, doctor


def findings(capsys, code=0):
    assert cli.main(["doctor", "--json"]) == code
    return {row["name"]: row for row in json.loads(capsys.readouterr().out)}


def test_what_is_there(capsys):
    found = findings(capsys)
    assert found["torch"]["found"].startswith(torch.__version__)
    assert found["policy-split"]["status"] == found["kernels on cpu"]["status"] == "ok"
    assert {row["status"] for row in found.values()} <= {"ok", "missing"}
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(found)
    assert all(line.split()[0] in ("ok", "missing") for line in lines)


@pytest.mark.parametrize(
    ("module", "error", "status", "said", "code"),
    [
        (
            "trl",
            ModuleNotFoundError("No module named 'trl'", name="trl"),
            "missing",
            "pip install policy-split[trl]",
            0,
        ),
        ("trl", ModuleNotFoundError("No module named 'x'", name="x"), "wrong", "No module named 'x'", 1),
        ("matplotlib", RuntimeError("of another NumPy"), "wrong", "RuntimeError: of another NumPy", 1),
        ("datasets", ModuleNotFoundError("", name="datasets"), "wrong", "reinstall policy-split", 1),
    ],
)
def test_packages_that_are_missing_or_broken(monkeypatch, capsys, module, error, status, said, code):
    original = doctor.importlib.import_module

    def imported(name, *more):
        if name == module:
            raise error
        return original(name, *more)

    monkeypatch.setattr(doctor.importlib, "import_module", imported)
    row = findings(capsys, code)[module]
    assert row["status"] == status
    assert said in row["found"]


def test_without_the_native_library(monkeypatch, capsys):
    monkeypatch.setattr(doctor.native_library, "library", lambda: None)
    found = findings(capsys)
    assert found["native library"]["status"] == "missing"
    assert "many times slower" in found["native library"]["found"]
    assert found["kernels on cpu"]["status"] == "ok"  # by plain PyTorch


def test_kernels_that_are_wrong(monkeypatch, capsys):
    right = doctor.logprobs_and_entropy
    monkeypatch.setattr(doctor, "logprobs_and_entropy", lambda *x: [y * 1.001 for y in right(*x)])
    row = findings(capsys, 1)["kernels on cpu"]
    assert row["status"] == "wrong"
    monkeypatch.setattr(doctor, "logprobs_and_entropy", lambda *x: 1 / 0)
    assert "ZeroDivisionError" in findings(capsys, 1)["kernels on cpu"]["found"]
