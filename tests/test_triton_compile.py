"""Static proof of the Triton kernels where there is no GPU: the launch tables, compiled and looked through.

The compiler runs in child processes, because this one may have Triton's interpreter switched on.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
pytestmark = pytest.mark.timeout(600)  # the first test waits for all compilations, about a minute on two free cores

CHILD = Path(__file__).with_name("triton_compile_child.py")
SHARES = [("cuda:80", "cuda:90"), ("cuda:100", "hip:gfx942")]  # one process each
TARGETS = [target for share in SHARES for target in share]
DTYPES = ["float32", "bfloat16", "float16", "float64"]
# Instructions per logit of a pass over a bfloat16 row at V = 151936; an H200 has 15.6 for each read (kernel notes).
SLOTS = {
    "cuda:90": {
        "statistics": [10.0],
        "gradient": [8.0],
        "loss": [10.0, 8.0],
        "divergence": [12.4],
        "divergence_gradient": [12.0, 12.0],
    },
    "cuda:100": {
        "statistics": [9.25],
        "gradient": [7.5],
        "loss": [9.25, 7.5],
        "divergence": [12.4],
        "divergence_gradient": [12.0, 12.0],
    },
}
LOGITS_PER_ITERATION = {"float32": 16, "bfloat16": 32, "float16": 32}  # of both matrices, where there are two


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    environment.pop("TRITON_INTERPRET", None)
    children = [
        subprocess.Popen([sys.executable, CHILD, *share], env=environment, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for share in SHARES
    ]  # fmt: skip
    merged = {}
    for child in children:
        output, errors = child.communicate()
        assert child.returncode == 0, errors[-4000:]
        merged |= json.loads(output)
    return merged


@pytest.fixture
def report(reports, target):
    return reports[target]


@pytest.fixture
def kernels(report, dtype):
    """Every compiled kernel of this target and dtype whose rows are aligned, by its job."""
    rows = [row for row in report["kernels"] if row["job"][1] == dtype and row["job"][2] != 2053]
    assert len(rows) >= 5
    return rows


def offenders(kernels, wrong):
    """One line for each kernel that is wrong, so that the message names them all."""
    return [str(row) for row in kernels if wrong(row)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("target", TARGETS)
class TestMachineCode:
    def test_no_spills_and_no_stack(self, kernels):
        assert offenders(kernels, lambda row: row["spills"] or row["stack"]) == []

    def test_loads_and_stores_of_16_bytes(self, kernels):
        assert offenders(kernels, lambda row: row["wide_loads"] == 0) == []
        writers = [row for row in kernels if row["job"][0] in ("gradient", "loss", "scale", "divergence_gradient")]
        assert offenders(writers, lambda row: row["wide_stores"] == 0) == []

    def test_no_narrow_access_to_the_rows(self, kernels):
        """All accesses that are not of 16 bytes are those of per-row numbers (with the target's logit and gradient: at
        most 14 loads and 10 stores) and, where there is one, of a mask with a byte for each logit, 8 at a time."""
        by_row = [row for row in kernels if row["job"][3] != "kept"]
        assert offenders(by_row, lambda row: row["narrow_loads"] > 14 or row["narrow_stores"] > 10) == []
        by_logit = [row for row in kernels if row["job"][3] == "kept"]
        assert offenders(by_logit, lambda row: row["narrow_loads"] > 14 + row["wide_loads"]) == []

    def test_no_atomics(self, kernels):
        assert offenders(kernels, lambda row: row["atomics"]) == []


@pytest.mark.parametrize("dtype", list(LOGITS_PER_ITERATION))
@pytest.mark.parametrize("target", [target for target in TARGETS if target.startswith("cuda")])
class TestRowLoops:
    """The main loops over a row, as the SASS has them. float64 has no ex2 instruction to find them by."""

    def test_one_ex2_for_each_logit_and_pass(self, kernels, dtype):
        logits = LOGITS_PER_ITERATION[dtype]
        rows = [row for row in kernels if row["job"][2] == 151936 and row["job"][3] != "capped"]
        spent = [loop["ex2"] for row in rows for loop in row["loops"]]
        assert len(spent) >= 7
        assert all(logits <= ex2 <= logits + 2 for ex2 in spent), spent  # one or two more rescale the lane's sums

    def test_no_barrier_shuffle_or_shared_memory(self, kernels):
        assert offenders(kernels, lambda row: any(loop["waits"] for loop in row["loops"])) == []


@pytest.mark.parametrize("name", list(SLOTS["cuda:90"]))
@pytest.mark.parametrize("target", list(SLOTS))
def test_instructions_per_logit(report, target, name):
    rows = [row for row in report["kernels"] if row["job"] == [name, "bfloat16", 151936, "full"]]
    (spent,) = ([loop["slots"] / LOGITS_PER_ITERATION["bfloat16"] for loop in row["loops"]] for row in rows)
    budget = SLOTS[target][name]
    assert len(spent) == len(budget)
    assert all(x <= limit for x, limit in zip(spent, budget, strict=True)), f"{spent}, allowed are {budget}"


@pytest.mark.parametrize("target", TARGETS)
class TestOfTheTest:
    """Kernels that must fail the checks above, so that a check that sees nothing is noticed."""

    def test_unaligned_rows_have_no_wide_access(self, report):
        (row,) = (row for row in report["kernels"] if row["job"][2] == 2053)
        assert row["wide_loads"] == row["wide_stores"] == row["spills"] == 0
        assert row["narrow_loads"] > 12

    def test_too_few_registers_spill(self, report):
        assert report["mutant_spills"]["spills"] > 0
        assert report["mutant_spills"]["stack"] > 0

    def test_an_atomic_is_seen(self, report):
        assert report["mutant_atomics"] > 0


@pytest.mark.parametrize("target", TARGETS)
def test_one_variant_for_all_lengths_batches_alignments_of_vectors_and_values(report):
    assert set(report["variants"].values()) == {1}, report["variants"]
