"""Predicts a loss kernel for Hopper that holds its row in the shared memory of a thread-block cluster.

It would read each logit from memory once. Ours reads it twice, the second time from the L2 cache as far as that goes:
between the two reads of the element at distance x from the end of a row, each of P rows in flight brings in x of logits
and, unless its stores are first to be evicted or in place, x of gradient. Least recently used goes first, so that the
element is still there while P * x (or twice that) fits. Run by `python -m benchmarks.static --cluster`.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from ..markdown import table
from .chips import CHIPS

CACHE_BYTES = {"H100": 50 << 20, "H200": 50 << 20}
# Hopper's cache has two halves; what one holds for the other's multiprocessors it may hold twice.
CACHE_SHARES = {"whole": 1.0, "half": 0.5}
SHARED_BYTES = 227 << 10  # of a multiprocessor
LOGITS_A_STORE = 8  # bfloat16 in the 16 bytes that a thread puts into shared memory at once
# Logits and gradient bring so many lines into the cache for each logit: by which stores.
STORES = {"ordinary stores": 2, "stores that are evicted first, or in place": 1}


class Kernel(NamedTuple):
    vocabulary: int
    itemsize: int
    slots: float  # instructions of both passes for a logit
    special: float

    @property
    def row_bytes(self) -> int:
        return self.vocabulary * self.itemsize


def missed(kernel: Kernel, rows: int, cache_bytes: float, lines: int) -> float:
    """Share of the second read that comes from memory."""
    return max(0.0, 1 - cache_bytes / (lines * rows * kernel.row_bytes))


def seconds(chip: str, kernel: Kernel, bytes_moved: float) -> float:
    """Of a logit: the slowest of memory, instructions and special functions."""
    rates = CHIPS[chip]
    issue, special = kernel.slots * rates.seconds(rates.slots), kernel.special * rates.seconds(rates.special)
    return max(bytes_moved / (rates.terabytes * 1e12), issue, special)


def cluster_size(kernel: Kernel) -> int:
    """Multiprocessors that share a row, so that one may be read while another one's gradient is written; 8 at most."""
    return next((size for size in (1, 2, 4, 8) if 2 * kernel.row_bytes <= size * SHARED_BYTES), 0)


def faster(chip: str, kernel: Kernel, lines: int, share: float) -> tuple[float, float]:
    """(the share missed, how many times as fast a cluster is): a row a multiprocessor, as `launch` has it."""
    again = missed(kernel, CHIPS[chip].multiprocessors, CACHE_BYTES[chip] * share, lines)
    once = 2 * kernel.itemsize
    in_cluster = kernel._replace(slots=kernel.slots + 1 / LOGITS_A_STORE)
    return again, seconds(chip, kernel, once + again * kernel.itemsize) / seconds(chip, in_cluster, once)


def rows(kernel: Kernel) -> list[list[str]]:
    return [
        [chip, stores, name, f"{again:.0%}", f"{ratio:.2f}x"]
        for chip in CACHE_BYTES
        for stores, lines in STORES.items()
        for name, share in CACHE_SHARES.items()
        for again, ratio in [faster(chip, kernel, lines, share)]
    ]


def compiled_loss(vocabulary: int = 151936) -> Kernel:
    """Our kernel in bfloat16, from its machine code for sm_90."""
    from ..static import per_logit
    from . import assembly, compiled

    target, job = compiled.activate("cuda:90", 0), ("loss", "bfloat16", vocabulary, "plain")
    spent = per_logit({"job": job} | assembly.read(compiled.compiled_by(target, *job), "cuda").record())
    if spent is None:
        raise RuntimeError(f"the loss kernel has no loop over a row of {vocabulary}")
    return Kernel(vocabulary, 2, spent.slots, spent.special)


def print_prediction() -> None:
    """By a child process: Triton's interpreter may be switched on in this one."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.machine_code.cluster"]
    subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, check=True)


if __name__ == "__main__":
    kernel = compiled_loss()
    print(
        f"loss with gradient, bfloat16, V = {kernel.vocabulary}: {kernel.slots:.1f} instructions per logit; predicted,"
    )
    print(f"against a cluster of {cluster_size(kernel)} multiprocessors that hold a row in their shared memory")
    print(table(["chip", "the gradient's", "L2 cache", "read again from memory", "cluster"], rows(kernel)))
