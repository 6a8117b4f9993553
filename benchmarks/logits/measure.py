"""One configuration (N, V, dtype): every candidate checked, then those that agree timed in one interleaved run.

`admit` and `timed` do so for any candidate that has a key, a record, and what makes and checks its run.
"""

import gc
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch

from ..interleave import interleaved, ratio
from . import candidates
from .candidates import Batch
from .kinds import KINDS, MASKED, OURS, Candidate, Inputs, Kind, candidates_of


class DeviceLost(Exception):
    """A candidate left the device unusable, and nothing after it can be measured."""


def measure(
    tokens: int, vocabulary: int, dtype: torch.dtype, device: str, rounds: int,
    once: bool = False, pair: bool = True, without: Sequence[str] = (),
) -> dict:  # fmt: skip
    """Everything about one configuration; `once`: with the kinds that are measured once; `pair`: two batches fit."""
    start = time.perf_counter()
    kinds = [x for x in KINDS if (once or not x.once) and (pair or not x.name.startswith("divergence"))]
    batches = [
        Batch(tokens, vocabulary, dtype, seed, device, candidates.sequences_of(tokens), MASKED if once else 0.0)
        for seed in range(2 if pair else 1)
    ]
    inputs = Inputs(batches, torch.zeros_like(batches[0].logits))
    entries = [x for x in candidates_of(kinds) if x.name not in without]
    runs = {"copy": candidates.copy(*inputs)} | admitted(entries, inputs)
    checked, retries = time.perf_counter(), allocator_retries(device)
    seconds = timed_into_records(entries, runs, rounds, device)
    copy = statistics.median(seconds["copy"])
    return {
        "tokens": tokens,
        "vocabulary": vocabulary,
        "dtype": str(dtype).removeprefix("torch."),
        "copy": {"milliseconds": copy * 1e3, "bytes_per_second": 2 * batches[0].logits.nbytes / copy},
        "allocator_retries": allocator_retries(device) - retries,
        "seconds": {"checking": checked - start, "timing": time.perf_counter() - checked},
        "kinds": {kind.name: summary(kind, entries, seconds) for kind in kinds},
    }


def admitted(entries: Sequence[Candidate], inputs: Inputs) -> dict[str, Callable[[int], object]]:
    runs = {}
    for entry in entries:
        start, run = time.perf_counter(), admit(entry, inputs)
        print(f"      {entry.key}: {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)  # where it hangs
        if run is not None:
            runs[entry.key] = run
    return runs


def admit(entry: Candidate, inputs: Inputs) -> Callable[[int], object] | None:
    """Run once and compare: the run where the values agree, else None, and why not in the record."""
    if entry.omits:
        entry.record["omits"] = entry.omits
    try:
        run = entry.make(inputs)
        outputs = run(0)
        error, bound = entry.error(outputs, inputs), entry.tolerance(outputs, inputs.dtype)
        del outputs
        entry.record["error"] = error
        if not error <= bound:
            entry.record["failed"] = f"wrong by {error:.2g}, allowed {bound:.2g}"
            return None
        if inputs.is_cuda:
            entry.record["peak_memory"] = peak_memory(run) / inputs.unit
        return run
    except Exception as problem:
        entry.record["failed"] = reason(problem)
        gc.collect()  # a traceback holds tensors
        return None
    finally:
        if inputs.is_cuda:
            tidy(entry)


def tidy(entry: Candidate) -> None:
    """Memory back, and a look at whether the device still answers."""
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError as problem:
        raise DeviceLost(f"{entry.key} left the GPU unusable ({reason(problem)}); try --without {entry.name}") from None


def reason(problem: Exception) -> str:
    if isinstance(problem, torch.OutOfMemoryError):
        return "out of memory"
    if isinstance(problem, ImportError):
        return f"not importable: {problem}"
    first = (str(problem).strip().splitlines() or [""])[0]
    return f"failed: {type(problem).__name__}: {first[:160]}"


def peak_memory(run: Callable[[int], object]) -> int:
    """Bytes above what was allocated before, the result among them."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = run(1)
    torch.cuda.synchronize()
    del result
    return torch.cuda.max_memory_allocated() - before


def allocator_retries(device: str) -> int:
    """How often memory was so short that the allocator gave all of its own back, which costs time that is not ours."""
    return torch.cuda.memory_stats().get("num_alloc_retries", 0) if device == "cuda" else 0


def timed_into_records(
    entries: Sequence[Candidate], runs: dict[str, Callable], rounds: int, device: str
) -> dict[str, list[float]]:
    """Seconds in each round of all that did not drop out; into the records the median, or why it did."""
    seconds, failed = timed(runs, rounds, device)
    for entry in entries:
        if entry.key in failed:
            entry.record["failed"] = failed[entry.key]
        elif entry.key in seconds:
            entry.record["milliseconds"] = statistics.median(seconds[entry.key]) * 1e3
    return seconds


def timed(runs: dict[str, Callable], rounds: int, device: str) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds in each round, on a GPU between events on its stream; and why a candidate dropped out."""
    failed: dict[str, str] = {}
    events: dict[str, list] = {name: [] for name in runs}

    def guarded(name: str) -> Callable[[int], object]:
        def run(k: int) -> object:
            if name in failed:
                return None
            try:
                return between_events(runs[name], k, events[name]) if device == "cuda" else runs[name](k)
            except Exception as problem:
                failed[name] = reason(problem)
                return None

        return run

    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    seconds = interleaved({name: guarded(name) for name in runs}, rounds, synchronize=synchronize)
    if device == "cuda":
        seconds = {name: [start.elapsed_time(end) / 1e3 for start, end in pairs] for name, pairs in events.items()}
    return {name: times for name, times in seconds.items() if name not in failed}, failed


def between_events(run: Callable[[int], object], k: int, events: list) -> object:
    torch.cuda._sleep(2_000_000)  # about a millisecond, in which the launches queue up: the host's time is not counted
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    result = run(k)
    end.record()
    if k >= 0:
        events.append((start, end))
    return result


def summary(kind: Kind, entries: list[Candidate], seconds: dict[str, list[float]]) -> dict:
    """The records of a kind's candidates, ours with its share of the copy's speed, and what became of the targets."""
    own = [x for x in entries if x.kind == kind]
    ours = f"{kind.name}:{OURS}"
    result = {"candidates": {x.name: x.record for x in own}, "targets": {}}
    if ours not in seconds:
        return result
    share = result["share_of_copy"] = kind.moves / 2 * ratio(seconds, "copy", ours)
    if kind.share is not None:
        result["targets"][f">= {kind.share * 100:.0f} % of copy"] = share >= kind.share
    for entry in own:
        if entry.key in seconds and not entry.is_ours:
            entry.record["ours_is_faster"] = ratio(seconds, entry.key, ours)
            if not entry.omits:
                result["targets"][f"faster than {entry.name}"] = entry.record["ours_is_faster"] > 1
    return result
