"""Where a step of the trainer goes, and what the trainer itself takes of it, on the built-in task's CPU preset.

`python -m benchmarks.trainer.profile [--steps 30] [--algorithms policy_split grpo]` warms the small model up until
responses have their usual lengths, trains each algorithm from a copy of it, and prints a table. Phases are timed by
functions put around the trainer's own while the benchmark runs: each has its time less that of the phases inside it.

`--batches`: padded in order of length, padded as drawn, and packed batches of one rollout instead.
"""

import argparse
import copy
import functools
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
import transformers

from policy_split.config import PolicySplitConfig
from policy_split.countdown.grading import countdown_reward
from policy_split.countdown.job import warm_start_countdown
from policy_split.countdown.problems import warm_start_examples
from policy_split.countdown.sizes import SIZES
from policy_split.rollouts import answering, engine
from policy_split.rollouts import rollout as rollouts
from policy_split.run_folder.record import Record, described
from policy_split.run_folder.runlog import RunLog
from policy_split.training import trainer as trainers
from policy_split.training.baseline_step import BaselineTokens
from policy_split.training.dual_step import DualTokens
from policy_split.training.garbage import old_objects_aside
from policy_split.training.trainer import PolicySplitTrainer

from ..interleave import interleaved, machine, ratio
from ..markdown import table

WARM_UP = 3  # steps that are not counted
GENERATE, GENERATING = "generation: transformers' generate, around the model", "generation: model forward"
SCORING, FORWARD, BACKWARD = "scoring: model forward", "update: model forward", "update: model backward"
MODEL = (GENERATE, GENERATING, SCORING, FORWARD, BACKWARD)  # everything else is the trainer's own
LAYOUT, SCORE, UPDATE, REST = (
    "prompts, sampled ids, layout", "scoring: batches", "update: batches, loss arguments", "everything else",
)  # fmt: skip
OWN = (
    LAYOUT, "decoding", "rewards", SCORE, "metrics of the rollout", "advantages", UPDATE, "optimizer and clipping",
    "log", REST,
)  # fmt: skip
FORWARDS = {GENERATE: GENERATING, SCORE: SCORING, UPDATE: FORWARD}


class Phases:
    """Exclusive seconds of nested phases, of each step of each run."""

    def __init__(self) -> None:
        self.steps: dict[str, list[dict[str, float]]] = defaultdict(list)
        self.stack: list[str] = []
        self.step: dict[str, float] = {}
        self.since = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._count()
        self.stack.append(name)
        try:
            yield
        finally:
            self._count()
            self.stack.pop()

    def begin(self, run: str) -> None:
        self.step = defaultdict(float)
        self.steps[run].append(self.step)

    def around(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The function in a phase of its own, where it is called inside another."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if not self.stack:
                return function(*args, **kwargs)
            with self.phase(FORWARDS[self.stack[-1]] if name == "forward" else name):
                return function(*args, **kwargs)

        return timed

    def _count(self) -> None:
        now = time.perf_counter()
        if self.stack:
            self.step[self.stack[-1]] += now - self.since
        self.since = now


@contextmanager
def phases_of(runs: list[PolicySplitTrainer]) -> Iterator[Phases]:
    """The phases of the runs' steps, as long as the context lasts."""
    phases = Phases()
    functions = [
        (engine, "sample", GENERATE), (answering, "grade", "rewards"), (trainers, "score_rollout", SCORE),
        (trainers, "rollout_sums", "metrics of the rollout"), (RunLog, "write", "log"),
        (DualTokens, "fill", "advantages"), (BaselineTokens, "fill", "advantages"),
    ]  # fmt: skip
    for run in runs:
        functions += [
            (run, "sample", LAYOUT),
            (run.update, "step", UPDATE), (run.update, "_finish", "optimizer and clipping"),
            (run.accelerator, "backward", BACKWARD), (run.tokenizer, "batch_decode", "decoding"),
            (run.policy.bare, "forward", "forward"),
        ]  # fmt: skip
    with ExitStack() as stack:
        for owner, name, phase in functions:
            stack.enter_context(patch.object(owner, name, phases.around(getattr(owner, name), phase)))
        yield phases


def warmed_model(steps: int, seed: int) -> tuple[Any, Any, Any]:
    """(model, tokenizer, questions) of the preset, its warm start cut to some steps and examples."""
    size = replace(SIZES["small"], warm_start_steps=steps, warm_start_examples=2000)
    config = PolicySplitConfig(**size.settings)
    tokenizer = size.tokenizer()
    model = size.model(tokenizer, seed)
    examples = warm_start_examples(size.task, size.warm_start_examples, seed=seed)
    warm_start_countdown(model, tokenizer, config, size, examples, seed=seed)
    return model, tokenizer, size.task.dataset(size.train_questions, seed=seed)


def trainer_of(warmed: tuple[Any, Any, Any], folder: str, **options: Any) -> PolicySplitTrainer:
    model, tokenizer, questions = warmed
    settings = SIZES["small"].settings | {"save_steps": 0, "disable_tqdm": True, "output_dir": folder} | options
    return PolicySplitTrainer(
        copy.deepcopy(model), tokenizer, countdown_reward, questions, PolicySplitConfig(**settings)
    )


def profile(warmed: tuple[Any, Any, Any], algorithms: Sequence[str], steps: int) -> dict[str, list[dict[str, float]]]:
    """Seconds of each phase, of each step of each algorithm; they step in turn, so that all have the same machine."""
    with ExitStack() as stack:
        runs, logs = {}, {}
        for name in algorithms:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            runs[name] = trainer_of(warmed, folder, algorithm=name, max_steps=WARM_UP + steps)
            run, record = runs[name], Record(described(runs[name].config, {}), {})
            logs[name] = stack.enter_context(RunLog(run.accelerator, run.config, record, resume=False))
        phases = stack.enter_context(phases_of(list(runs.values())))
        stack.enter_context(old_objects_aside())  # as in a run
        for _ in range(WARM_UP + steps):
            for name, run in runs.items():
                phases.begin(name)
                with phases.phase(REST):
                    logs[name].write(*run.step(), run.tokenizer)
    return {name: found[WARM_UP:] for name, found in phases.steps.items()}


def share(step: dict[str, float], names: tuple[str, ...]) -> float:
    return sum(step[name] for name in names) / sum(step.values())


def report(found: dict[str, list[dict[str, float]]]) -> str:
    """Medians over steps, ms and share of a step."""
    rows = []
    for name in (*MODEL, *OWN):
        row = [name]
        for steps in found.values():
            row += [f"{1e3 * statistics.median(step[name] for step in steps):.2f}"]
            row += [f"{100 * statistics.median(share(step, (name,)) for step in steps):.1f} %"]
        rows.append(row)
    totals = {name: statistics.median(sum(step.values()) for step in steps) for name, steps in found.items()}
    own = {name: statistics.median(share(step, OWN) for step in steps) for name, steps in found.items()}
    rows.append(["**a step**", *(cell for name in found for cell in (f"**{1e3 * totals[name]:.1f}**", ""))])
    rows.append(["**the trainer's own**", *(cell for name in found for cell in ("", f"**{100 * own[name]:.1f} %**"))])
    lines = [table(["", *(cell for name in found for cell in (f"{name}, ms", "share"))], rows)]
    first, *others = found
    for name in others:
        times = statistics.median(
            sum(a.values()) / sum(b.values()) for a, b in zip(found[first], found[name], strict=True)
        )
        lines.append(f"\na step of {first} takes {times:.2f} times as long as one of {name}")
    return "\n".join(lines)


def batches(warmed: tuple[Any, Any, Any], size: int, rounds: int) -> str:
    """Scoring and the gradients of 8 of the preset's questions: tokens that the model computes, and time."""
    with tempfile.TemporaryDirectory() as folder:
        run = trainer_of(warmed, folder, prompts_per_step=8, per_device_train_batch_size=size)
    rollout = run.sample()
    rows = list(range(len(rollout.mode)))
    drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    as_drawn = [drawn[start : start + size] for start in range(0, len(rows), size)]
    by_length = rollouts.micro_batches(rollout, rows, run.config)
    kinds = {"padded, as drawn": (False, as_drawn), "padded, by length": (False, by_length)} | {
        "packed": (True, by_length)
    }
    computed = {
        name: sum(rollout.batch(rows, packed=packed).inputs["input_ids"].numel() for rows in cut)
        for name, (packed, cut) in kinds.items()
    }

    def score(packed: bool, cut: list[list[int]]) -> Callable[[int], Any]:
        def run_once(k: int) -> Any:
            run.policy.packed = packed
            return rollouts.score(run.policy, rollout, cut, run.config.temperature)

        return run_once

    def update(packed: bool, cut: list[list[int]]) -> Callable[[int], Any]:
        advantages, weights = torch.ones(rollout.mask.shape), rollout.train_mask / rollout.train_mask.sum()

        def run_once(k: int) -> None:
            run.policy.packed = packed
            for rows in cut:
                run.update.backward(rollout, rows, advantages, None, None, weights)
            run.optimizer.zero_grad()

        return run_once

    scores = {name: score(*kind)(0).logprobs for name, kind in kinds.items()}
    for name, found in scores.items():  # nothing is timed that computes something else
        torch.testing.assert_close(found, scores["packed"], rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    seconds = {}
    for part, make in (("scoring", score), ("update", update)):
        taken = interleaved({name: make(*kind) for name, kind in kinds.items()}, rounds)
        seconds[part] = {name: ratio(taken, name, "padded, as drawn") for name in kinds}
    needed = computed["packed"]
    lines = [
        [name, f"{tokens:,}", f"{100 * (1 - needed / tokens):.1f} %", *(f"{seconds[p][name]:.2f}" for p in seconds)]
        for name, tokens in computed.items()
    ]
    head = ["", "tokens computed", "padding", "scoring, of padded as drawn", "update, of padded as drawn"]
    return f"{len(rows):,} rows, {size} in a micro-batch\n\n" + table(head, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30, help="counted steps of each algorithm")
    parser.add_argument("--algorithms", nargs="+", default=["policy_split", "grpo"])
    parser.add_argument("--warm-start-steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batches", action="store_true", help="compare padded and packed batches instead")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 32])
    arguments = parser.parse_args()
    versions = machine() | {"transformers": transformers.__version__}
    print("  ".join(f"{key}: {value}" for key, value in versions.items()), end="\n\n")
    warmed = warmed_model(arguments.warm_start_steps, arguments.seed)
    if arguments.batches:
        print("\n\n".join(batches(warmed, size, arguments.steps) for size in arguments.batch_sizes))
        return
    print(report(profile(warmed, arguments.algorithms, arguments.steps)))


if __name__ == "__main__":
    main()
