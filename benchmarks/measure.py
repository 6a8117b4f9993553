"""One configuration (N, V, dtype): every candidate checked, then those that agree timed in one interleaved run."""

import functools
import gc
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from . import candidates, check
from .candidates import Batch
from .interleave import interleaved, ratio
from .peers import PEERS

OURS = "policy_split"
MASKED = 0.3  # of the rows, in the kind that says so


@dataclass(frozen=True)
class Kind:
    """What is computed, and the least that it moves, in N x V: the share of a copy's bytes per second is of that."""

    name: str
    moves: float
    share: float | None = None  # of the copy's bytes per second: the target
    once: bool = False  # measured in one configuration only


KINDS = [
    Kind("forward", 1, 0.90),
    Kind("loss", 2, 0.85),
    Kind("divergence", 2),
    Kind("divergence+gradient", 6),
    Kind("loss-masked", 2 - MASKED, once=True),
    Kind("loss-no_entropy", 2, once=True),
]
LOSSES = {  # of each kind of loss: are rows masked, is there an entropy bonus
    "loss": {"masked": False, "with_entropy": True},
    "loss-masked": {"masked": True, "with_entropy": True},
    "loss-no_entropy": {"masked": False, "with_entropy": False},
}


@dataclass
class Candidate:
    kind: str
    name: str
    make: Callable[[], Callable[[int], object]]  # the run of round k; raises where a library is missing
    error: Callable[[object], float]  # of the result of round 0
    omits: str = ""
    run: Callable[[int], object] | None = None
    record: dict = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"{self.kind}:{self.name}"

    @property
    def whose(self) -> str:
        return "ours" if self.name.startswith(OURS) else "peer"


class DeviceLost(Exception):
    """A candidate left the device unusable, and nothing after it can be measured."""


def measure(
    tokens: int, vocabulary: int, dtype: torch.dtype, device: str, rounds: int,
    once: bool = False, without: tuple[str, ...] = (), pairs: bool = True,
) -> dict:  # fmt: skip
    """Everything about one configuration; `once`: with the kinds that are measured once; `pairs`: two batches fit."""
    sequences = candidates.sequences_of(tokens)
    batches = [
        Batch(tokens, vocabulary, dtype, seed, device, sequences, MASKED if once else 0.0)
        for seed in range(2 if pairs else 1)
    ]
    scratch = torch.zeros_like(batches[0].logits)
    entries = [x for x in candidates_of(batches, scratch, once) if x.name not in without]
    for entry in entries:
        admit(entry, batches[0].logits.nbytes, dtype, device)
    runs = {"copy": candidates.copy(batches, scratch)} | {x.key: x.run for x in entries if x.run is not None}
    seconds, failed = timed(runs, rounds, device)
    for entry in entries:
        if entry.key in failed:
            entry.record["failed"] = failed[entry.key]
        elif entry.key in seconds:
            entry.record["milliseconds"] = statistics.median(seconds[entry.key]) * 1e3
    kinds = {kind.name: summary(kind, entries, seconds) for kind in KINDS if once or not kind.once}
    copy = statistics.median(seconds["copy"])
    return {
        "tokens": tokens,
        "vocabulary": vocabulary,
        "dtype": str(dtype).removeprefix("torch."),
        "copy": {"milliseconds": copy * 1e3, "bytes_per_second": 2 * batches[0].logits.nbytes / copy},
        "kinds": kinds,
    }


@functools.cache
def compiled(function: Callable) -> Callable:
    """torch.compile once for each vocabulary and dtype: as for ours, the number of rows may change."""
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    fast = torch.compile(function, dynamic=False)

    def call(*tensors: torch.Tensor, **settings) -> object:
        for x in [*tensors, *settings.values()]:
            if isinstance(x, torch.Tensor):
                torch._dynamo.mark_dynamic(x, 0)
        return fast(*tensors, **settings)

    return call


def candidates_of(batches: list[Batch], scratch: torch.Tensor, once: bool) -> list[Candidate]:
    found = []
    statistics_functions = functions(candidates.logprobs_and_entropy, candidates.eager_statistics)
    peers = [(x.name, x.load, x.omits) for x in PEERS if x.kind == "forward"]
    for name, load, omits in [*statistics_functions, *peers]:
        run = functools.partial(lambda load: candidates.forward(load(), batches), load)
        found.append(Candidate("forward", name, run, lambda out: check.statistics_error(out, batches[0]), omits))
    for kind, settings in LOSSES.items():
        if kind == "loss" or once:
            found += loss_candidates(kind, batches, **settings)
    found.append(inplace_candidate(batches, scratch))
    pairs = functions(candidates.our_divergence, candidates.eager_divergence) if len(batches) > 1 else []
    for name, load, _ in pairs:
        run = functools.partial(lambda load: candidates.divergence(load(), batches), load)
        found.append(Candidate("divergence", name, run, lambda out: check.divergence_error(out, batches)))
        run = functools.partial(lambda load: candidates.divergence_and_gradient(load(), batches), load)
        error = functools.partial(check.divergence_gradient_error, batches=batches)
        found.append(Candidate("divergence+gradient", name, run, error))
    return found


def functions(ours: Callable, eager: Callable) -> list[tuple[str, Callable[[], Callable], str]]:
    return [(OURS, lambda: ours, ""), ("compile", lambda: compiled(eager), ""), ("eager", lambda: eager, "")]


def loss_candidates(kind: str, batches: list[Batch], masked: bool, with_entropy: bool) -> list[Candidate]:
    """Those that have no entropy are compared, in values too, with the loss that has none."""
    found = []
    peers = [(x.name, x.load, x.omits) for x in PEERS if x.kind == "loss"]
    for name, load, omits in [*functions(candidates.our_loss, candidates.eager_loss), *peers]:
        bonus = with_entropy and not omits
        found.append(
            Candidate(
                kind,
                name,
                functools.partial(
                    lambda load, bonus: candidates.loss_and_gradient(load(), batches, masked, bonus), load, bonus
                ),
                functools.partial(
                    lambda out, bonus, last: check.gradient_error(
                        out[0], batches[0], batches[0].mask if masked else None, bonus, without_last=last
                    ),
                    bonus=bonus,
                    last=name == "liger",
                ),
                omits if with_entropy else "",
            )
        )
    return found


def inplace_candidate(batches: list[Batch], scratch: torch.Tensor) -> Candidate:
    def make() -> Callable[[int], object]:
        scratch.copy_(batches[0].logits)
        return candidates.loss_and_gradient_inplace(batches, scratch)

    return Candidate("loss", f"{OURS}-inplace", make, lambda out: check.gradient_error(out[0], batches[0]))


def admit(entry: Candidate, nbytes: int, dtype: torch.dtype, device: str) -> None:
    """Run once and compare: sets `run` where the values agree, and says in `record` why not."""
    entry.record |= {"omits": entry.omits} if entry.omits else {}
    try:
        run = entry.make()
        outputs = run(0)
        error = entry.error(outputs)
        bound = check.tolerance(outputs, dtype, entry.whose, "loss" in entry.kind or "gradient" in entry.kind)
        del outputs
        entry.record["error"] = error
        if not error <= bound:
            entry.record["wrong"] = f"wrong by {error:.2g}, allowed {bound:.2g}"
            return
        if device == "cuda":
            entry.record["peak_memory"] = peak_memory(run) / nbytes
        entry.run = run
    except Exception as problem:
        entry.record["failed"] = reason(problem)
    finally:
        tidy(entry, device)


def tidy(entry: Candidate, device: str) -> None:
    gc.collect()
    if device != "cuda":
        return
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError as problem:
        raise DeviceLost(f"{entry.key} left the GPU unusable: {reason(problem)}; --without {entry.name}") from problem


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


def timed(runs: dict[str, Callable], rounds: int, device: str) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds in each round, on a GPU between events on its stream; and why a candidate dropped out."""
    failed: dict[str, str] = {}
    events: dict[str, list] = {name: [] for name in runs}

    def guarded(name: str) -> Callable[[int], object]:
        def run(k: int) -> object:
            if name in failed:
                return None
            try:
                if device != "cuda":
                    return runs[name](k)
                torch.cuda._sleep(2_000_000)  # about a millisecond, in which the launches queue up
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                result = runs[name](k)
                end.record()
                if k >= 0:
                    events[name].append((start, end))
                return result
            except Exception as problem:
                failed[name] = reason(problem)
                return None

        return run

    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    seconds = interleaved({name: guarded(name) for name in runs}, rounds, synchronize=synchronize)
    if device == "cuda":
        seconds = {name: [start.elapsed_time(end) / 1e3 for start, end in pairs] for name, pairs in events.items()}
    return {name: times for name, times in seconds.items() if name not in failed}, failed


def summary(kind: Kind, entries: list[Candidate], seconds: dict[str, list[float]]) -> dict:
    """The records of a kind's candidates, ours with its share of the copy's speed, and what became of the targets."""
    own = {x.name: x for x in entries if x.kind == kind.name}
    ours = f"{kind.name}:{OURS}"
    result = {"candidates": {name: x.record for name, x in own.items()}, "targets": {}}
    if ours not in seconds:
        return result
    share = kind.moves / 2 * ratio(seconds, "copy", ours)
    result["share_of_copy"] = share
    if kind.share is not None:
        result["targets"][f"{kind.share:.0%} of copy"] = share >= kind.share
    for name, entry in own.items():
        if entry.key in seconds and entry.whose == "peer":
            entry.record["ours_is_faster"] = ratio(seconds, entry.key, ours)
            if not entry.omits:
                result["targets"][f"faster than {name}"] = entry.record["ours_is_faster"] > 1
    return result
