"""`make bench-static`: what the Triton kernels ask of GPUs that are not here, from their machine code.

Compiles every row of the launch table for sm_80, sm_90, sm_100 and gfx942 and prints registers, spills, shared memory,
width of loads and stores, and from the loops over a row, for each logit, instructions, special functions and bytes; and
from them and the published rates of `chips` what bounds each kernel. A model: it knows no latency and no cache misses.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from .machine_code.chips import CHIPS, Bound, bound
from .machine_code.cluster import print_prediction
from .markdown import table

TARGETS = ["cuda:80", "cuda:90", "cuda:100", "hip:gfx942"]
ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
LEAST = 32  # bytes that an iteration over a row loads for a thread; less is the loop over rows


@dataclass
class PerLogit:
    """Of each logit that is read from memory: instructions and special functions for a thread, bytes."""

    slots: float
    special: float
    bytes: float
    read: int  # of them, read
    loops: list[float]  # slots of each pass over the row


def row_loops(record: dict) -> list[dict]:
    return [loop for loop in record["loops"] if loop["loaded"] >= LEAST]


def per_logit(record: dict) -> PerLogit | None:
    """None for a row so short that its loop is gone. What a second pass loads, the first left in the cache."""
    loops, read = row_loops(record), ITEMSIZE[record["job"][1]]
    if record["job"][3] == "kept":
        read += 1  # a byte of the mask for each logit
    if not loops:
        return None
    logits = [loop["loaded"] / read for loop in loops]
    slots = [loop["slots"] / n for loop, n in zip(loops, logits, strict=True)]
    special = sum(loop["special"] / n for loop, n in zip(loops, logits, strict=True))
    written = sum(loop["stored"] / n for loop, n in zip(loops, logits, strict=True))
    return PerLogit(sum(slots), special, read + written, read, slots)


def bounds(record: dict, target: str) -> dict[str, Bound]:
    """Of each chip of this target."""
    spent = per_logit(record)
    chips = {name: chip for name, chip in CHIPS.items() if chip.target == target and spent}
    return {name: bound(chip, spent.bytes, spent.slots, spent.special) for name, chip in chips.items()}


def row(record: dict, target: str) -> list[str]:
    name, dtype, vocabulary, form = record["job"]
    spent = per_logit(record)
    loops = "no loop" if spent is None else " + ".join(f"{slots:.1f}" for slots in spent.loops)
    numbers = ["", ""] if spent is None else [f"{spent.special:.2f}", f"{spent.bytes:.1f}"]
    found = [f"{chip}: {x.by}, {x.spare:.0%} spare" for chip, x in bounds(record, target).items()]
    widths = [f"{max(map(int, record[kind]), default=0)}" for kind in ("loads", "stores")]
    usage = [str(record[field]) for field in ("registers", "spills", "shared")]
    label = name if form in ("full", "plain") else f"{name}, {form}"
    return [target, label, dtype, str(vocabulary), *usage, *widths, loops, *numbers, "; ".join(found)]


HEADER = [
    "target", "kernel", "dtype", "V", "registers", "spills", "shared bytes", "widest load", "widest store",
    "instructions per logit", "special per logit", "bytes per logit", "bound",
]  # fmt: skip


def reports(targets: list[str], dtypes: list[str], processes: int = 2) -> dict[str, list[dict]]:
    """Records of each target, compiled by child processes: Triton's interpreter may be switched on in this one."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.machine_code.compiled", ",".join(dtypes), *targets[k::processes]],
            cwd=Path(__file__).parents[1], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for k in range(min(processes, len(targets)))
    ]  # fmt: skip
    merged = {}
    for child in children:
        output, errors = child.communicate()
        if child.returncode != 0:
            raise RuntimeError(f"compilation failed:\n{errors[-4000:]}")
        merged |= json.loads(output)
    return {target: merged[target] for target in targets}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS)
    parser.add_argument("--dtype", nargs="+", choices=ITEMSIZE, default=["bfloat16", "float32"])
    parser.add_argument("--output", help="JSON file with every record")
    parser.add_argument("--cluster", action="store_true", help="predict a loss kernel with rows in shared memory, only")
    options = parser.parse_args()
    if options.cluster:
        print_prediction()
        return
    found = reports(options.targets, options.dtype)
    for target, records in found.items():
        for record in records:
            record["row_loops"], spent = row_loops(record), per_logit(record)
            record["per_logit"] = spent and asdict(spent)
            record["bounds"] = {chip: x._asdict() for chip, x in bounds(record, target).items()}
    print(table(HEADER, [row(record, target) for target, records in found.items() for record in records]))
    if options.output:
        Path(options.output).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
