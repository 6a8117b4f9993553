"""A step of the built-in task alone and beside busy processes: `python -m benchmarks.trainer.busy`.

Once with PyTorch's own threads, which spin while they wait for each other, and once as `policy-split train` sets them:
they soon sleep, and their number is measured before the first step. Prints seconds a step and how many times longer it
takes beside the others.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..interleave import machine
from ..markdown import table

HOW = {"PyTorch's own": {}, "as `policy-split train`": {"GOMP_SPINCOUNT": "2000"}}
SETTLED = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def step_seconds(chosen: bool, size: str) -> float:
    """The median step of this process, behind one that is not counted."""
    from policy_split.training.threads import choose_threads

    from .compare import SIZES
    from .step_process import Phases, ours

    with tempfile.TemporaryDirectory() as folder:
        step, _ = ours(SIZES[size], "policy_split", folder, Phases())
        if chosen:
            choose_threads(step.__self__)  # type: ignore[attr-defined]
        step()
        return statistics.median(_seconds(step) for _ in range(SIZES[size].steps))


def _seconds(step) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that do nothing but take time."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def measured(how: str, size: str) -> float:
    environment = {name: value for name, value in os.environ.items() if name not in SETTLED} | HOW[how]
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.trainer.busy", "--child", how, "--size", size]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return float(done.stdout.splitlines()[-1])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2, help="Busy ones beside it.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", default="countdown", help="Of benchmarks.trainer.compare.")
    parser.add_argument("--child", choices=HOW, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.child:
        print(step_seconds(given.child == "as `policy-split train`", given.size))
        return
    where = machine()
    print(f"{where['cpu']}, {os.cpu_count()} cores, torch {where['torch']}, {where['date']}\n")
    taken: dict[tuple[str, int], list[float]] = {(how, n): [] for how in HOW for n in (0, given.processes)}
    for _ in range(given.rounds):
        for (how, others), seconds in taken.items():
            with busy(others):
                seconds.append(measured(how, given.size))
    rows = []
    for how in HOW:
        alone, beside = (statistics.median(taken[how, n]) for n in (0, given.processes))
        rows.append([how, f"{alone:.2f}", f"{beside:.2f}", f"{beside / alone:.1f}"])
    print(table(["threads", "alone, s a step", f"beside {given.processes} busy processes", "times as long"], rows))


if __name__ == "__main__":
    main()
