"""Steps of TRL's GRPO trainer and of ours, side by side: `make bench-trainer`, `python -m benchmarks.trainer.compare`.

Each trainer runs in a process of its own, all of them once in every round, on the same model from scratch, the same
questions and as many generated tokens; a step is one rollout and one optimizer step. Prints for each size a table of
seconds (medians over the rounds), phases, trained tokens a second and peak memory above the model, with the ratios
round by round, and writes them to benchmarks/results/trainer-<device>.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..interleave import machine
from ..markdown import table

OURS = ("ours, grpo", "ours, policy_split", "ours, policy_split, logits twice")
TRAINERS = ("TRL GRPOTrainer", *OURS, "PolicySplitGRPOTrainer")
PHASES = ("generation", "scoring", "update", "rest")
RESULTS = Path(__file__).parents[1] / "results"


@dataclass(frozen=True)
class Size:
    """What every trainer is given; a micro-batch has `rows` rows in TRL's trainers, and `our_rows` in ours."""

    questions: int
    responses: int  # to each question, over both modes
    prompt: int  # tokens
    response: int  # tokens
    layers: int = 4
    width: int = 256
    vocabulary: int = 49152
    rows: int = 32
    our_rows: int = 16
    steps: int = 1  # of each round, behind one that is not counted


SIZES = {
    "short": Size(8, 8, 42, 64),
    "prompts-500": Size(4, 8, 500, 128, rows=16),
    "countdown": Size(64, 16, 8, 6, layers=3, width=64, vocabulary=128, rows=1024, our_rows=2048, steps=5),
    "tiny": Size(2, 4, 6, 4, layers=1, width=32, vocabulary=64, rows=4, our_rows=8),  # for the test of this file
}


def measured(name: str, size: str, trainers: tuple[str, ...], rounds: int) -> list[dict[str, Any]]:
    """What `step_process` prints of each trainer, round by round in rotating order."""
    found = []
    for number in range(rounds):
        turn = number % len(trainers)
        for trainer in trainers[turn:] + trainers[:turn]:
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.trainer.step_process", trainer, size]
            done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
            if done.returncode:
                raise RuntimeError(f"{trainer}, {name}: {done.stderr[-2000:]}")
            found.append({"trainer": trainer, "round": number, **json.loads(done.stdout.splitlines()[-1])})
            print(f"{name}, round {number + 1}, {trainer}: {found[-1]['seconds']:.2f} s", file=sys.stderr, flush=True)
    return found


def summary(found: list[dict[str, Any]], trainers: tuple[str, ...]) -> list[list[str]]:
    """A row of each trainer; ratios against the first, the medians of those of each round."""
    rows = []
    base = [run for run in found if run["trainer"] == trainers[0]]
    for trainer in trainers:
        runs = [run for run in found if run["trainer"] == trainer]
        seconds = statistics.median(run["seconds"] for run in runs)
        ratio = statistics.median(a["seconds"] / b["seconds"] for a, b in zip(base, runs, strict=True))
        phases = [statistics.median(run["phases"].get(phase, 0.0) for run in runs) for phase in PHASES]
        rate = statistics.median(run["trained_tokens"] / run["seconds"] for run in runs)
        memory = statistics.median(run["memory"] for run in runs) / 2**20
        rows.append(
            [trainer, f"{seconds:.2f}", *(f"{x:.2f}" for x in phases), f"{ratio:.2f}", f"{rate:.0f}", f"{memory:.0f}"]
        )
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["short", "countdown", "prompts-500"])
    parser.add_argument("--trainers", nargs="+", choices=TRAINERS, default=TRAINERS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", help="Folder of the JSON. Not given: benchmarks/results.")
    given = parser.parse_args(arguments)
    trainers, where = tuple(given.trainers), machine() | {"threads": os.environ.get("OMP_NUM_THREADS", "all")}
    results: dict[str, Any] = {"machine": where, "sizes": {}}
    print(f"{where['cpu']}, threads: {where['threads']}, torch {where['torch']}, {where['date']}")
    folder = Path(given.output or RESULTS)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"trainer-{'cpu' if where.get('gpu') is None else where['gpu']}.json"
    for name in given.sizes:
        size = SIZES[name]
        found = measured(name, name, trainers, given.rounds)
        results["sizes"][name] = {"size": asdict(size), "runs": found}
        said = f"{size.questions} questions x {size.responses} responses of {size.response} tokens"
        print(
            f"\n{name}: {said}, prompts of {size.prompt}, {size.layers} layers, D {size.width}, V {size.vocabulary}\n"
        )
        head = ["", "s a step", *PHASES, "times as fast as the first", "trained tokens/s", "peak above the model, MiB"]
        print(table(head, summary(found, trainers)))
        path.write_text(json.dumps(results, indent=1) + "\n")  # of each size as it is done
    print(f"\nwritten: {path}")


if __name__ == "__main__":
    main()
