"""Each formula of the kernels is broken once, in a copy, and the tests named beside it have to fail.

The copies without a change show that they pass otherwise. Mutants of the C++ sources are built for one instruction set.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mutations import MUTANTS

FOLDER = Path(__file__).parent
BACKENDS = ("torch", "native", "triton")


def controls():
    """For each backend the tests of all its mutants, with nothing changed."""
    for backend in BACKENDS:
        tests = {test for mutant in MUTANTS if mutant.backend == backend for test in mutant.tests}
        yield {"name": f"unchanged_{backend}", "file": None, "backend": backend, "tests": sorted(tests)}


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    mutants = [*controls(), *({**mutant._asdict(), "backend": mutant.backend} for mutant in MUTANTS)]
    run = subprocess.run(
        [sys.executable, str(FOLDER / "mutation_run.py"), str(tmp_path_factory.mktemp("mutants"))],
        input=json.dumps(mutants), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return {report["name"]: report for report in map(json.loads, run.stdout.splitlines())}


needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_tests_pass_on_an_unchanged_copy(reports, backend):
    report = reports[f"unchanged_{backend}"]
    assert report["verdict"] == "passed", report["output"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.file}-{mutant.name}")
def test_a_broken_formula_is_noticed(reports, mutant):
    report = reports[mutant.name]
    assert report["verdict"] == "failed", f"{report['verdict']}\n{report['output']}"


def test_names_are_unique():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
