"""Static proof of the Triton kernels where there is no GPU: the launch tables, compiled and looked through.

The compiler runs in child processes, because this one may have Triton's interpreter switched on.
"""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import truth

pytest.importorskip("triton")
pytestmark = pytest.mark.timeout(1200)  # a test waits for its target's compilations

ROOT = Path(__file__).parents[2]
MIXTURE = ("jensen_shannon", "jensen_shannon_gradient")  # bound by their instructions
TARGETS = ["cuda:80", "cuda:90", "cuda:100", "hip:gfx942"]
DTYPES = ["float32", "bfloat16", "float16", "float64"]


def group(target, dtype="bfloat16"):
    """What one process compiles."""
    return pytest.mark.xdist_group(f"{target}-{dtype}")


def pair(target, dtype):
    """One architecture in each dtype and each in the dtype that is trained in; the rest is full."""
    first = target == "cuda:90" or dtype == "bfloat16"
    return pytest.param(target, dtype, marks=[group(target, dtype)] + [pytest.mark.full] * (not first))


EACH = [pytest.param(target, marks=group(target)) for target in TARGETS]
MATRIX = [pair(target, dtype) for target in TARGETS for dtype in DTYPES]
LONGEST = 151936
# Instructions per logit of each pass over a bfloat16 row: what was reached, and a little.
SLOTS = {
    "cuda:90": {
        "statistics": [10],
        "gradient": [8],
        "loss": [10, 8],
        "divergence": [11.1],
        "divergence_gradient": [12],
    },
    "cuda:100": {"statistics": [9], "gradient": [6], "loss": [9, 6], "divergence": [10], "divergence_gradient": [11]},
}
# The compiler of Triton 3.8 needs more in these.
TRITON_38 = {
    "cuda:90": {"divergence_gradient": [13.75]},
    "cuda:100": {"gradient": [7.1], "loss": [9, 7.1], "divergence_gradient": [13.75]},
}
SPARE = 0.20  # of the memory's time, by which every kernel of the bfloat16 table must be bound by memory
BOUND = ["H100", "H200"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    found = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    found.pop("TRITON_INTERPRET", None)
    return found


@pytest.fixture(scope="module")
def compiled(tmp_path_factory, environment):
    """Records of a target's kernels in one dtype, and the table that is printed of them."""

    @functools.cache
    def records_and_table(target, dtype):
        output = tmp_path_factory.mktemp("static") / "static.json"
        options = ["--targets", target, "--dtype", dtype, "--output", str(output)]
        command = [sys.executable, "-m", "benchmarks.static", *options]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(output.read_text())[target], done.stdout

    return records_and_table


@pytest.fixture(scope="module")
def others(environment):
    """Variants by shape, and kernels that must fail the checks, of each target."""
    command = [sys.executable, Path(__file__).parents[1] / "support" / "static_child.py", *TARGETS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.fixture
def kernels(compiled, target, dtype):
    """Every compiled kernel of this target and dtype whose rows are aligned."""
    records, _ = compiled(target, dtype)
    rows = [row for row in records if row["job"][2] != 2053]
    assert {row["job"][1] for row in rows} == {dtype}
    assert len(rows) >= 20
    return rows


def offenders(kernels, wrong):
    """One line for each kernel that is wrong, so that the message names them all."""
    return [str(row) for row in kernels if wrong(row)]


def wide(accesses):
    return sum(count for size, count in accesses.items() if int(size) >= 16)


def narrow(accesses):
    return sum(accesses.values()) - wide(accesses)


@pytest.mark.parametrize(("target", "dtype"), MATRIX)
class TestMachineCode:
    def test_no_spills_and_no_stack(self, kernels):
        assert offenders(kernels, lambda row: row["spills"] or row["stack"]) == []

    def test_loads_and_stores_of_16_bytes(self, kernels):
        assert offenders(kernels, lambda row: wide(row["loads"]) == 0) == []
        writers = [row for row in kernels if row["job"][0] in ("gradient", "loss", "scale", "divergence_gradient")]
        assert offenders(writers, lambda row: wide(row["stores"]) == 0) == []

    def test_no_narrow_access_to_the_rows(self, kernels):
        """All accesses that are not of 16 bytes are those of per-row numbers (with the target's logit and gradient: at
        most 14 loads and 10 stores) and, where there is one, of a mask with a byte for each logit, 8 at a time."""
        by_row = [row for row in kernels if row["job"][3] != "kept"]
        assert offenders(by_row, lambda row: narrow(row["loads"]) > 14 or narrow(row["stores"]) > 10) == []
        by_logit = [row for row in kernels if row["job"][3] == "kept"]
        assert offenders(by_logit, lambda row: narrow(row["loads"]) > 16 + wide(row["loads"])) == []

    def test_no_atomics(self, kernels):
        assert offenders(kernels, lambda row: row["atomics"]) == []

    def test_no_barrier_shuffle_or_shared_memory_in_a_row_loop(self, kernels):
        assert offenders(kernels, lambda row: any(loop["waits"] for loop in row["row_loops"])) == []


@pytest.mark.parametrize(("target", "dtype"), [x for x in MATRIX if "float64" not in x.values])
def test_one_special_function_for_each_logit_and_pass(kernels):
    """One or two more in an iteration rescale a lane's sums. float64 has no exp2; a mixture has a logarithm."""
    rows = [row for row in kernels if row["job"][2] == LONGEST and row["job"][3] in ("full", "plain", "cispo")]
    others = ("scale", *MIXTURE)
    passes = [(loop, row) for row in rows if row["job"][0] not in others for loop in row["row_loops"]]
    assert len(passes) >= 7
    for loop, row in passes:
        logits = loop["loaded"] / row["per_logit"]["read"]
        assert logits <= loop["special"] <= logits + 2, row["job"]


@pytest.mark.parametrize("name", list(SLOTS["cuda:90"]))
@pytest.mark.parametrize("target", [x for x in EACH if x.values[0] in SLOTS])
def test_instructions_per_logit(compiled, target, name):
    records, _ = compiled(target, "bfloat16")
    (row,) = (row for row in records if row["job"] == [name, "bfloat16", LONGEST, "full"])
    older = TRITON_38[target] if truth.triton_before(3, 9) else {}
    spent, budget = row["per_logit"]["loops"], older.get(name, SLOTS[target][name])
    assert len(spent) >= len(budget)
    worst = [max(spent)] if len(budget) == 1 else spent
    assert all(x <= limit for x, limit in zip(worst, budget, strict=True)), f"{spent}, allowed are {budget}"


@group("cuda:90")
@pytest.mark.parametrize("chip", BOUND)
def test_every_kernel_of_the_bfloat16_table_is_bound_by_memory(compiled, chip):
    """By the model of benchmarks.static, at the chip's published rates; without softcaps and mixtures."""
    records, _ = compiled("cuda:90", "bfloat16")
    table = [row for row in records if row["job"][3] != "capped" and row["job"][0] not in MIXTURE]
    bounds = {tuple(row["job"]): row["bounds"][chip] for row in table if row["bounds"]}
    assert {job[0] for job in bounds} == {
        "statistics", "gradient", "loss", "loss_forward", "scale", "divergence", "divergence_gradient"
    }  # fmt: skip
    assert {job[2] for job in bounds} == {8192, 32000, LONGEST}  # rows of 512 have no loop
    assert {job: bound for job, bound in bounds.items() if bound["by"] != "memory" or bound["spare"] < SPARE} == {}


@pytest.mark.parametrize("target", EACH)
def test_the_table_is_printed_with_the_bounds_of_its_chips(compiled, target):
    chips = {"cuda:80": ["A100"], "cuda:90": ["H100", "H200"], "cuda:100": ["B200"], "hip:gfx942": ["MI300X"]}[target]
    _, printed = compiled(target, "bfloat16")
    (line, *_) = (line for line in printed.splitlines() if "| loss | bfloat16 | 151936 |" in line)
    assert all(f"{chip}: " in line for chip in chips), line


@pytest.mark.parametrize("target", EACH)
class TestOfTheTest:
    """Kernels that must fail the checks above, so that a check that sees nothing is noticed."""

    def test_unaligned_rows_have_no_wide_access(self, compiled, target):
        records, _ = compiled(target, "bfloat16")
        (row,) = (row for row in records if row["job"][2] == 2053)
        assert wide(row["loads"]) == wide(row["stores"]) == row["spills"] == 0
        assert narrow(row["loads"]) > 14

    def test_too_few_registers_spill(self, others, target):
        assert others[target]["spilling"]["spills"] > 0
        assert others[target]["spilling"]["stack"] > 0

    def test_an_atomic_is_seen(self, others, target):
        assert others[target]["atomic"]["atomics"] > 0


def test_a_straightforward_kernel_is_bound_by_its_instructions(others):
    """A mask and a maximum over the tile in each iteration: what the budget is there to forbid."""
    assert others["cuda:90"]["straightforward"]["H200"]["spare"] < SPARE


@pytest.mark.parametrize("target", EACH)
def test_one_variant_for_all_lengths_batches_alignments_of_vectors_and_values(others, target):
    assert set(others[target]["variants"].values()) == {1}, others[target]["variants"]
