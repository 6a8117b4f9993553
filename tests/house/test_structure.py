"""The house: every folder and module says what it is, files are short, and import-linter's contracts can be broken."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = (ROOT / "policy_split", ROOT / "kernels" / "policy_split_kernels")
FOLDERS = (*PACKAGES, *(ROOT / name for name in ("benchmarks", "examples", "scripts", "tests")))
LINES = 300
# One import too many for each contract of pyproject.toml: where it is planted, and how the linter reports it.
PLANTED = {
    "policy_split: a folder imports only folders below it": (
        "policy_split/losses/weights.py", "import policy_split.commands.main",
        "policy_split.losses.weights -> policy_split.commands.main"),
    "kernels: what users call, then the ops, then the columns": (
        "kernels/policy_split_kernels/memory.py", "from . import ops",
        "policy_split_kernels.memory -> policy_split_kernels.ops"),
    "kernels: the columns do not know each other": (
        "kernels/policy_split_kernels/reference/loss.py", "from ..cpu import library",
        "policy_split_kernels.reference.loss -> policy_split_kernels.cpu.library"),
    "kernels know nothing of policy_split": (
        "kernels/policy_split_kernels/contract.py", "import policy_split.modes",
        "policy_split_kernels.contract -> policy_split.modes"),
    "the drop-in functions stand on the kernels alone": (
        "policy_split/drop_in/verl.py", "import policy_split.losses.weights",
        "policy_split.drop_in.verl -> policy_split.losses.weights"),
    "nothing knows the integrations": (
        "policy_split/training/update.py", "import policy_split.integrations.trl",
        "policy_split.training.update -> policy_split.integrations.trl"),
    "Triton in gpu/ alone": (
        "kernels/policy_split_kernels/rows.py", "import triton", "policy_split_kernels.rows -> triton"),
    "ctypes in the library loader alone": (
        "policy_split/storage/whole_folder.py", "import ctypes", "policy_split.storage.whole_folder -> ctypes"),
    "TRL and verl in integrations/ alone": (
        "policy_split/models/policy.py", "import verl", "policy_split.models.policy -> verl"),
    "vLLM in its engine alone": (
        "policy_split/training/run.py", "import vllm", "policy_split.training.run -> vllm"),
    "the command line in commands/ alone": (
        "policy_split/study/plan.py", "import argparse", "policy_split.study.plan -> argparse"),
}  # fmt: skip


def modules(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in sorted(folder.rglob("*.py"))]


def docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def linted(root: Path) -> subprocess.CompletedProcess[str]:
    """import-linter on the two packages that stand in root, its report in lines that are not broken."""
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'kernels'}", "COLUMNS": "200"}
    call = "from importlinter.cli import lint_imports_command as run; run()"
    return subprocess.run(
        [sys.executable, "-c", call, "--no-cache"], cwd=root, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_a_folder_says_in_five_lines_what_it_is_for(package):
    folders = {path.parent for path in modules(package)}
    assert len(folders) > 3
    lengths = {folder: len(docstring(folder / "__init__.py").splitlines()) for folder in folders}
    assert not {str(folder) for folder, length in lengths.items() if not 1 <= length <= 5}


def test_a_module_says_in_its_first_line_what_it_is():
    paths = modules(*FOLDERS)
    assert len(paths) > 250
    first = {path: (docstring(path).splitlines() or [""])[0] for path in paths}
    assert not {str(path): line for path, line in first.items() if len(line) < 12 or not line.endswith((".", ":"))}


def test_files_are_short():
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in modules(*FOLDERS)}
    assert not {str(path): length for path, length in lengths.items() if length > LINES}


def test_the_kernels_folder_is_no_package():
    """`kernels` is Hugging Face's name, for which transformers looks."""
    assert (PACKAGES[1] / "__init__.py").is_file()
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_imports_keep_to_the_contracts():
    result = linted(ROOT)
    assert f"Contracts: {len(PLANTED)} kept, 0 broken" in result.stdout, result.stdout + result.stderr
    assert result.returncode == 0


def test_each_contract_can_be_broken(tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package in PACKAGES:
        target = tmp_path / package.relative_to(ROOT)
        shutil.copytree(package, target, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name, line, _ in PLANTED.values():
        with open(tmp_path / name, "a", encoding="utf-8") as file:
            file.write(f"\n{line}\n")
    result = linted(tmp_path)
    assert f"Contracts: 0 kept, {len(PLANTED)} broken" in result.stdout, result.stdout + result.stderr
    assert result.returncode == 1
    _, _, details = result.stdout.partition("Broken contracts")
    for contract, (_, _, told) in PLANTED.items():
        _, _, section = details.partition(f"{contract}\n---")
        assert told in section.split("\n---")[0], contract
