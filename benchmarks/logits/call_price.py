"""The price of a call where the kernel is nothing: 8 x 128 logits on one thread, beside eager PyTorch.

python -m benchmarks.logits.call_price [--rounds N]
"""

import argparse
import time
from collections.abc import Callable

import torch

from ..interleave import machine
from . import candidates

TOKENS, VOCABULARY = 8, 128
CALLS = 5  # of a candidate in one round: few enough to end before the scheduler's turn


def runs() -> dict[str, dict[str, Callable[[int], object]]]:
    """Of each kind of call: ours and eager."""
    batches = [candidates.Batch(TOKENS, VOCABULARY, torch.float32, seed) for seed in range(2)]
    statistics = {"ours": candidates.logprobs_and_entropy, "eager": candidates.eager_statistics}
    losses = {"ours": candidates.our_loss, "eager": candidates.eager_loss}
    return {
        "statistics without gradient": {k: candidates.forward(f, batches) for k, f in statistics.items()},
        "loss with gradient": {k: candidates.loss_and_gradient(f, batches) for k, f in losses.items()},
    }


def microseconds(candidate: dict[str, Callable[[int], object]], rounds: int) -> dict[str, float]:
    """The least of a thread's own time per call, over interleaved rounds: what others do on the machine adds to it."""
    least = dict.fromkeys(candidate, float("inf"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(rounds):
            for name, run in candidate.items():
                start = time.thread_time()
                for k in range(CALLS):
                    run(k)
                least[name] = min(least[name], (time.thread_time() - start) / CALLS * 1e6)
    finally:
        torch.set_num_threads(threads)
    return least


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1000)
    rounds = parser.parse_args().rounds
    print(*(f"{name}: {value}" for name, value in machine().items()), sep="\n")
    for kind, candidate in runs().items():
        price = microseconds(candidate, rounds)
        print(f"{kind}, {TOKENS} x {VOCABULARY}, one thread: {price['ours']:.0f} us, eager {price['eager']:.0f} us")
