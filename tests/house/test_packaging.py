"""The wheel: built without torch, with a library for each instruction set; and without a compiler, with none."""

import os
import platform
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARIES = {"default", "avx2", "avx512"} if platform.machine() in ("x86_64", "AMD64") else {"default"}


def build(tmp_path, **environment):
    """(names in the wheel, its file name, what was printed) of a copy of what git tracks."""
    source = tmp_path / "source"
    source.mkdir()
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "no_torch").mkdir()
    (tmp_path / "no_torch" / "torch.py").write_text("raise ImportError('torch was imported at build time')")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # cmake and ninja of the test extra
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(tmp_path / "no_torch"), **environment}
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-v",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        ".",
    ]
    done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    return zipfile.ZipFile(wheel).namelist(), wheel.name, done.stdout + done.stderr


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="lists what git tracks")
def test_wheel(tmp_path):
    names, wheel, _ = build(tmp_path)
    assert "-py3-none-" in wheel
    assert {n for n in names if n.endswith(".so")} == {
        f"policy_split_kernels/cpu/libpolicy_split_kernels_{instruction_set}.so" for instruction_set in LIBRARIES
    }
    assert "policy_split/training/trainer.py" in names
    templates = {path.name for path in (ROOT / "policy_split/report/templates").iterdir()}
    assert {n.rpartition("/")[2] for n in names if n.startswith("policy_split/report/templates/")} == templates
    assert {"page.html.j2", "style.css", "charts.js"} <= templates
    assert not [name for name in names if name.startswith(("kernels/", "tests/", "benchmarks/"))]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="lists what git tracks")
def test_wheel_without_a_compiler(tmp_path):
    names, _, said = build(tmp_path, CXX="/bin/false")
    assert not [name for name in names if name.endswith(".so")]
    assert "policy_split_kernels/reference/logits.py" in names
    assert "the native CPU kernels could not be built" in said
