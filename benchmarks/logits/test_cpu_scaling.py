"""`make bench-cpu`: the kernels' time in the number of rows, in the vocabulary and in the threads, interleaved."""

import math
import statistics

import pytest
import torch

from ..interleave import interleaved, ratio
from . import candidates

LOGITS = 40_000_000  # 160 MB: larger than any cache, and 0.3 ms of Python a call are no part of it
VOCABULARIES = (1000, 4000, 32000, 151936, 256000)
ROUNDS, CALLS = 15, 5
ROW = 400  # logits: what else a row costs, its logarithms and exponentials of single numbers
# Where AVX-512 computes, one thread comes so near to the memory's rate that a second has little left to gain.
SECOND_THREAD = 1.2 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 1.7


@pytest.fixture
def threads():
    """Sets the number of threads for one run."""
    before = torch.get_num_threads()

    def with_threads(count, run):
        def run_with_threads(k):
            torch.set_num_threads(count)
            for _ in range(CALLS):  # the first has to wake the second thread
                result = run(k)
            return result

        return run_with_threads

    yield with_threads
    torch.set_num_threads(before)


def runs_of(kind, batches, scratch):
    if kind == "forward":
        return candidates.forward(candidates.logprobs_and_entropy, batches)
    return candidates.loss_and_gradient_inplace(batches, scratch)


@pytest.mark.parametrize("kind", ["forward", "loss"])
def test_time_is_linear_in_the_vocabulary_and_in_the_rows(kind):
    """Time per logit, whatever the shape: at most 1.35 times the least, and a fixed cost of each row."""
    runs, shapes = {}, {}
    for vocabulary in VOCABULARIES:
        for share in (1, 2):
            rows = LOGITS // vocabulary // share
            batch = candidates.Batch(rows, vocabulary, torch.float32, 0)
            name = f"{rows} x {vocabulary}"
            runs[name], shapes[name] = runs_of(kind, [batch], batch.logits.clone()), (rows, vocabulary)
    seconds = interleaved(runs, ROUNDS)
    picoseconds = {name: statistics.median(times) / math.prod(shapes[name]) * 1e12 for name, times in seconds.items()}
    print(f"\n{kind}, picoseconds per logit:", {name: round(value) for name, value in picoseconds.items()})
    least = min(picoseconds.values())
    too_slow = {name: x / least for name, x in picoseconds.items() if x / least > 1.35 + ROW / shapes[name][1]}
    assert too_slow == {}


@pytest.mark.parametrize("kind", ["forward", "loss"])
@pytest.mark.skipif(torch.get_num_threads() < 2, reason="one thread")
def test_a_second_thread(threads, kind):
    batches = [candidates.Batch(LOGITS // 151936, 151936, torch.float32, seed) for seed in range(2)]
    run = runs_of(kind, batches, batches[0].logits.clone())
    seconds = interleaved({"one": threads(1, run), "two": threads(2, run)}, ROUNDS)
    times = ratio(seconds, "one", "two")
    print(f"\n{kind}: two threads are {times:.2f} times as fast as one")
    assert times >= SECOND_THREAD
