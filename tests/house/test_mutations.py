"""Each formula of the kernels is broken once, in a copy, and the tests named beside it have to fail.

The copies without a change show that they pass otherwise. Mutants of the C++ sources are built for one instruction set.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import mutations
import pytest
from mutations import MUTANTS

RUN = Path(mutations.__file__).with_name("mutation_run.py")
BACKENDS = ("torch", "native", "triton")


def key(mutant):
    return f"{mutant.file.replace('/', '.')}-{mutant.name}"


def controls():
    """For each backend the tests of all its mutants, with nothing changed."""
    for backend in BACKENDS:
        tests = {test for mutant in MUTANTS if mutant.backend == backend for test in mutant.tests}
        yield {"name": f"unchanged_{backend}", "file": None, "backend": backend, "tests": sorted(tests)}


def needs(backend):
    return pytest.mark.skipif(backend == "native" and shutil.which("c++") is None, reason="needs a C++ compiler")


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """What became of each mutant, all of them run together: `mutation_run`."""
    every = [
        *controls(),
        *(mutant._asdict() | {"name": key(mutant), "backend": mutant.backend} for mutant in MUTANTS),
    ]
    run = subprocess.run(
        [sys.executable, str(RUN), str(tmp_path_factory.mktemp("mutants"))],
        input=json.dumps(every), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return {report["name"]: report for report in map(json.loads, run.stdout.splitlines())}


@pytest.mark.timeout(900)  # the first test waits for all of them: about a minute on two idle cores
@pytest.mark.parametrize("backend", [pytest.param(name, marks=needs(name)) for name in BACKENDS])
def test_the_tests_pass_on_an_unchanged_copy(reports, backend):
    report = reports[f"unchanged_{backend}"]
    assert report["verdict"] == "passed", report["output"]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "mutant", [pytest.param(mutant, id=key(mutant), marks=needs(mutant.backend)) for mutant in MUTANTS]
)
def test_a_broken_formula_is_noticed(reports, mutant):
    report = reports[key(mutant)]
    assert report["verdict"] == "failed", f"{report['verdict']}\n{report['output']}"


def test_names_are_unique():
    assert len({key(mutant) for mutant in MUTANTS}) == len(MUTANTS)
