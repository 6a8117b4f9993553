"""One LM head (N, D, V, dtype): every candidate checked, then those that agree timed in one interleaved run."""

import time
from collections.abc import Sequence

import torch

from ..interleave import ratio
from ..logits.kinds import MASKED
from ..logits.measure import admitted, allocator_retries, timed_into_records
from .kinds import HEAD, KINDS, OURS, PRODUCTS, HeadCandidate, HeadInputs, HeadKind, candidates_of
from .linear import HeadBatch

OF_PRODUCTS = 1.15  # ours at most, times the products of matrices alone
TIMES_FASTER = {"liger": 1.3, "trl": 1.3, "verl-torch": 4.0}  # ours at least; than any other that does the work: 1


def measure_head(
    tokens: int, width: int, vocabulary: int, dtype: torch.dtype, device: str, rounds: int,
    once: bool = False, without: Sequence[str] = (),
) -> dict:  # fmt: skip
    """Everything about one configuration; `once`: with the kinds that are measured once."""
    start = time.perf_counter()
    kinds = [kind for kind in KINDS if once or not kind.once]
    inputs = HeadInputs(HeadBatch(tokens, width, vocabulary, dtype, 0, device, MASKED if once else 0.0))
    entries = [x for kind in kinds for x in candidates_of(kind) if x.name not in without]
    runs = admitted(entries, inputs)
    inputs.exact.cache_clear()
    checked, retries = time.perf_counter(), allocator_retries(device)
    seconds = timed_into_records(entries, runs, rounds, device)
    return {
        "tokens": tokens,
        "width": width,
        "vocabulary": vocabulary,
        "dtype": str(dtype).removeprefix("torch."),
        "allocator_retries": allocator_retries(device) - retries,
        "seconds": {"checking": checked - start, "timing": time.perf_counter() - checked},
        "kinds": {kind.name: summary(kind, entries, seconds, inputs) for kind in kinds},
    }


def summary(kind: HeadKind, entries: list[HeadCandidate], seconds: dict[str, list[float]], inputs: HeadInputs) -> dict:
    """The records of a kind's candidates beside the products of matrices and beside ours, and the targets."""
    own = [x for x in entries if x.kind == kind]
    products, ours = f"{kind.name}:{PRODUCTS}", f"{kind.name}:{OURS}"
    targets: dict[str, bool] = {}
    for entry in own:
        if entry.key not in seconds:
            continue
        if products in seconds:
            entry.record["of_products"] = ratio(seconds, entry.key, products)
            operations = inputs.products(kind.masked).operations(kind.frozen)
            entry.record["useful_flops"] = operations / (entry.record["milliseconds"] / 1e3)
        if ours in seconds and not entry.is_ours and entry.name != PRODUCTS:
            faster = entry.record["ours_is_faster"] = ratio(seconds, entry.key, ours)
            times = TIMES_FASTER.get(entry.name, 1.0) if kind == HEAD else 1.0
            if not entry.omits:
                targets[f">= {times} times faster than {entry.name}"] = faster >= times
    if products in seconds and ours in seconds:
        targets[f"<= {OF_PRODUCTS} x the products"] = ratio(seconds, ours, products) <= OF_PRODUCTS
    return {"candidates": {x.name: x.record for x in own}, "targets": targets}
