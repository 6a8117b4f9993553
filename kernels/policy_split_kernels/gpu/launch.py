"""GPU: how rows are laid over threads and programs, and what a kernel may be compiled for.

No autotuner: the tables below are all there is, and tests compile them.
"""

import contextlib
import functools
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

VECTOR_BYTES = 16  # the widest load and store of a thread

# Vocabulary up to -> threads of a program, for every kernel that sums a row: one table, so that the log-probs of a
# rollout and those in its loss are added up in the same order. The loss reads its row twice, the second time from the
# L2 cache: few rows may be in flight, so many threads share a long one.
STATISTICS_THREADS = {1024: 64, 8192: 128, 32768: 256, math.inf: 512}
# Kernels without sums over a row: smaller programs, several on a multiprocessor, so that their ends do not coincide.
STREAMING_THREADS = {1024: 64, 8192: 128, math.inf: 256}
# The divergence keeps two rows' sums in 170 registers: three programs of 128 threads on a multiprocessor.
PAIR_THREADS = {1024: 64, math.inf: 128}
# Bytes of logits that a thread has in flight, by the size of a logit: float64 needs its registers for exp2.
THREAD_BYTES = {2: 64, 4: 64, 8: 32}
# The same of each of two matrices that are read together: with more there are too few registers.
PAIR_THREAD_BYTES = {2: 32, 4: 32, 8: 16}
# Of the gradient of a mixture of two, which would spill with more.
MIXTURE_THREAD_BYTES = {2: 16, 4: 32, 8: 16}
# Of the L2 cache for rows that are read a second time; the rest is for the gradient on its way out.
RESIDENT_SHARE = 0.6
# A multiprocessor has room for 512 threads of 128 registers. Of smaller programs, ptxas would give each thread of the
# loss 200, and leave half of it empty, or of a pair of rows 80, and spill. It reads a limit as leave to use it up, so
# only these have one (AMD has no such option).
RESIDENT_THREADS = 512
RESIDENT_REGISTERS = 128
# Neither the batch nor the alignment of a slice of a vector may recompile a kernel.
MATRICES = {"logits_ptr", "grad_ptr", "keep_ptr", "logits_a_ptr", "logits_b_ptr", "grad_a_ptr", "grad_b_ptr"}


class Tiling(NamedTuple):
    """Compile-time geometry of a row: tiles of (DEPTH, LANES, VEC) elements by `num_warps` warps."""

    V: int
    DEPTH: int
    LANES: int
    VEC: int
    num_warps: int

    def options(self) -> dict[str, int | bool]:
        """The kernels' constexprs and Triton's options; without the fusion of a * b + c a pass costs a fifth more."""
        return {**self._asdict(), "enable_fp_fusion": True}


def jit(function):
    """triton.jit of a kernel that is compiled for its constants and for the alignment of its matrices alone."""
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    constants = {name for name, annotation in function.__annotations__.items() if annotation is tl.constexpr}
    return triton.jit(function, do_not_specialize=[name for name in names if name not in constants | MATRICES])


class Machine(NamedTuple):
    warp_size: int
    multiprocessors: int
    cache_bytes: int
    nvidia: bool


INTERPRETER = Machine(warp_size=32, multiprocessors=2, cache_bytes=0, nvidia=False)


def tiling(
    vocabulary: int,
    itemsize: int,
    vector: int,
    threads_of: Mapping[float, int],
    warp_size: int,
    thread_bytes: Mapping[int, int] = THREAD_BYTES,
) -> Tiling:
    threads = next(threads for largest, threads in threads_of.items() if vocabulary <= largest)
    elements = thread_bytes[itemsize] // itemsize
    depth = max(1, min(elements // vector, triton.next_power_of_2(vocabulary) // (threads * vector)))
    return Tiling(vocabulary, depth, threads, vector, threads // warp_size)


def row_vector(*matrices: Tensor) -> int:
    """Elements that one load may take: the largest power of two that divides start and end of every row of each."""
    vector = VECTOR_BYTES // matrices[0].element_size()
    for x in matrices:
        itemsize = x.element_size()
        steps = (x.shape[-1] * itemsize, x.stride(0) * itemsize, x.stride(1) * itemsize)
        vector = math.gcd(vector * itemsize, x.data_ptr(), *steps) // itemsize
    return vector


def tiling_of(
    matrices: Sequence[Tensor | None], threads_of: Mapping[float, int], thread_bytes: Mapping[int, int] = THREAD_BYTES
) -> Tiling:
    """Of rows that are walked through together; the first matrix holds logits."""
    there = [x for x in matrices if x is not None]
    logits, vector = there[0], row_vector(*there)
    warp_size = machine_of(logits.device).warp_size
    return tiling(logits.shape[-1], logits.element_size(), vector, threads_of, warp_size, thread_bytes)


def strides(x: Tensor | None, vector: int) -> tuple[int, int]:
    """Over B and T of (B, T, V), in vectors; of a matrix that is not there, anything."""
    return (0, 0) if x is None else (x.stride(0) // vector, x.stride(1) // vector)


def temperature_stride(inverse_temperature: Tensor) -> int:
    return int(inverse_temperature.shape[0] > 1)


def row_vectors(logits: Tensor, dtype: torch.dtype, count: int) -> list[Tensor]:
    """Uninitialised (N,) for the results."""
    rows = logits.shape[0] * logits.shape[1]
    return [torch.empty(rows, dtype=dtype, device=logits.device) for _ in range(count)]


def resident_programs(rows: int, logits: Tensor, tiles: Tiling) -> int:
    """Programs of the loss kernel: as many rows as the L2 cache keeps, but no multiprocessor without work."""
    machine = machine_of(logits.device)
    cached = int(machine.cache_bytes * RESIDENT_SHARE) // (tiles.V * logits.element_size() * machine.multiprocessors)
    per_multiprocessor = max(1, min(cached, RESIDENT_THREADS // (tiles.num_warps * machine.warp_size)))
    return min(rows, per_multiprocessor * machine.multiprocessors)


def resident_options(device: torch.device) -> dict[str, int]:
    return {"maxnreg": RESIDENT_REGISTERS} if machine_of(device).nvidia else {}


def machine_of(device: torch.device) -> Machine:
    return INTERPRETER if device.type == "cpu" else _gpu(device.index)


@functools.cache
def _gpu(index: int) -> Machine:
    properties = torch.cuda.get_device_properties(index)
    nvidia = torch.version.hip is None
    return Machine(properties.warp_size, properties.multi_processor_count, properties.L2_cache_size, nvidia)


def on_device(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Launch on the tensors' own GPU. The interpreter computes with NumPy, which warns of every NaN and -inf."""
    if device.type == "cuda":
        return torch.cuda.device(device)
    return _silent_numpy()


@contextlib.contextmanager
def _silent_numpy() -> Iterator[None]:
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield
