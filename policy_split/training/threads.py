"""How many threads of the CPU a run uses: small models are faster on one than on several that wait for each other."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .trainer import PolicySplitTrainer

ROUNDS = 5
CLEARLY = 0.95  # of the time with fewer threads: less than 5 % is not worth a core
PROBE_FLOP = 2e9
PROBE_TOKENS = 64  # of a row


def choose_threads(trainer: "PolicySplitTrainer") -> None:
    """Set the number of threads that is fastest in a short measurement of the trainer's model; its config says it.

    Leaves all as it is where `num_threads` or OMP_NUM_THREADS has decided, with several processes, and on a GPU.
    """
    config, device = trainer.config, trainer.accelerator.device
    every = torch.get_num_threads()
    decided = config.num_threads is not None or "OMP_NUM_THREADS" in os.environ
    if decided or every == 1 or device.type != "cpu" or trainer.accelerator.num_processes > 1:
        return
    config.num_threads = fastest(_probe(trainer), _counts(every))
    torch.set_num_threads(config.num_threads)
    share = f"{config.num_threads} of {every}"
    said = f"{share} threads: the fastest for this model, by measurement (--num_threads decides)"
    trainer.accelerator.print(said, file=sys.stderr)


def fastest(seconds: Callable[[int], float], counts: Sequence[int]) -> int:
    """The count whose best of several rounds is clearly below that of every smaller one.

    seconds: what a probe takes with so many threads; called in turn for all counts, as other processes come and go.
    """
    taken = dict.fromkeys(counts, float("inf"))
    for _ in range(ROUNDS):
        for count in counts:
            taken[count] = min(taken[count], seconds(count))
    chosen = counts[0]
    for count in counts[1:]:
        if taken[count] < CLEARLY * taken[chosen]:
            chosen = count
    return chosen


def _counts(every: int) -> list[int]:
    """1, 2, 4, ... and all."""
    return [*(2**i for i in range(every.bit_length()) if 2**i < every), every]


def _probe(trainer: "PolicySplitTrainer") -> Callable[[int], float]:
    """Seconds of a forward and backward of the model, without its head, on a part of a micro-batch."""
    model, config = trainer.policy.bare, trainer.config
    body = model.get_decoder()
    per_token = 6 * sum(parameter.numel() for parameter in model.parameters())
    tokens = max(1, int(PROBE_FLOP / per_token))
    width = min(tokens, PROBE_TOKENS, config.max_completion_length)
    rows = max(1, min(config.per_device_train_batch_size, tokens // width))
    ids = torch.zeros(rows, width, dtype=torch.long)

    def seconds(threads: int) -> float:
        torch.set_num_threads(threads)
        started = time.perf_counter()
        with trainer.accelerator.autocast():
            hidden = body(input_ids=ids, use_cache=False).last_hidden_state
        parameters = [parameter for parameter in body.parameters() if parameter.requires_grad]
        torch.autograd.grad(hidden.float().square().sum(), parameters, allow_unused=True)
        return time.perf_counter() - started

    return seconds
