"""policy-split doctor: what is there, what is missing, what is broken, and kernels that compute wrongly."""

import json
import os
import subprocess
import sys

import pytest
import torch

from policy_split.commands import doctor
from policy_split.commands.main import main


def findings(capsys, code=0):
    assert main(["doctor", "--json"]) == code
    return {row["name"]: row for row in json.loads(capsys.readouterr().out)}


def test_what_is_there(capsys):
    found = findings(capsys)
    assert found["torch"]["found"].startswith(torch.__version__)
    assert found["policy-split"]["status"] == found["kernels on cpu"]["status"] == "ok"
    assert {row["status"] for row in found.values()} <= {"ok", "missing"}
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(found)
    assert all(line.split()[0] in ("ok", "missing") for line in lines)


@pytest.mark.parametrize(
    ("module", "error", "status", "said"),
    [
        ("trl", ModuleNotFoundError("No module named 'trl'", name="trl"), "missing", "pip install 'policy-split[trl]'"),
        ("flash_attn", ModuleNotFoundError("", name="flash_attn"), "missing", "[flash-attn]' --no-build-isolation"),
        ("peft", ModuleNotFoundError("", name="peft"), "missing", "no LoRA; pip install 'policy-split[peft]'"),
        ("trl", ModuleNotFoundError("No module named 'x'", name="x"), "wrong", "No module named 'x'"),
        ("matplotlib", RuntimeError("of another\nNumPy"), "wrong", "RuntimeError: of another NumPy"),
        ("reasoning_gym", SystemExit(3), "wrong", "SystemExit: 3"),
        ("datasets", ModuleNotFoundError("", name="datasets"), "wrong", "reinstall policy-split"),
    ],
)
def test_packages_that_are_missing_or_broken(monkeypatch, capsys, module, error, status, said):
    """They are told of; the exit code is that of the kernels."""
    original = doctor.importlib.import_module

    def imported(name, *more):
        if name == module:
            raise error
        return original(name, *more)

    monkeypatch.setattr(doctor.importlib, "import_module", imported)
    row = findings(capsys)[module.replace("_", "-")]
    assert row["status"] == status
    assert said in row["found"]


def test_without_the_native_library(monkeypatch, capsys):
    monkeypatch.setattr(doctor.library, "opened", lambda: None)
    found = findings(capsys)
    assert found["native library"]["status"] == "missing"
    assert "many times slower" in found["native library"]["found"]
    assert found["kernels on cpu"]["status"] == "ok"  # by plain PyTorch
    assert "kernels on cpu, native" not in found


def broken(tmp_path, **environment):
    """(exit code, findings, stderr) of the command where transformers prints and raises."""
    (tmp_path / "transformers").mkdir(exist_ok=True)
    (tmp_path / "transformers" / "__init__.py").write_text("print('noise')\nraise RuntimeError('of another torch')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-m", "policy_split", "doctor", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return done.returncode, {row["name"]: row for row in json.loads(done.stdout)}, done.stderr


def test_the_command_runs_where_transformers_is_broken(tmp_path):
    """And with the native library switched off, Triton in its interpreter: every backend is tried all the same."""
    code, found, said = broken(tmp_path, POLICY_SPLIT_BACKEND="torch", TRITON_INTERPRET="1")
    assert code == 0, said
    assert "Traceback" not in said
    assert found["transformers"]["status"] == "wrong"
    assert "RuntimeError: of another torch" in found["transformers"]["found"]
    assert "not used: POLICY_SPLIT_BACKEND=torch" in found["native library"]["found"]
    assert "TRITON_INTERPRET=1" in found["triton's interpreter"]["found"]
    assert "(backend torch)" in found["kernels on cpu"]["found"]
    tried = {name for name in found if name.startswith("kernels on cpu, ")}
    assert tried == {f"kernels on cpu, {backend}" for backend in ("torch", "native", "triton")}


def test_a_backend_that_is_none(monkeypatch, capsys):
    monkeypatch.setenv("POLICY_SPLIT_BACKEND", "fly")
    monkeypatch.setattr(doctor.backends, "_chosen", None)
    found = findings(capsys, 1)
    assert "unknown backend 'fly'" in found["kernels on cpu"]["found"]
    assert found["kernels on cpu, torch"]["status"] == "ok"
    assert doctor.backends._chosen is None


def test_kernels_that_are_wrong(monkeypatch, capsys):
    right = doctor.logprobs_and_entropy
    monkeypatch.setattr(doctor, "logprobs_and_entropy", lambda *x: [y * 1.001 for y in right(*x)])
    row = findings(capsys, 1)["kernels on cpu"]
    assert row["status"] == "wrong"
    monkeypatch.setattr(doctor, "logprobs_and_entropy", lambda *x: 1 / 0)
    assert "ZeroDivisionError" in findings(capsys, 1)["kernels on cpu"]["found"]
