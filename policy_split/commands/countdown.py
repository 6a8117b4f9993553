"""policy-split countdown: how many different problems the sizes of the built-in task hold."""

import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter

from policy_split.countdown.pool import different, pool_of
from policy_split.countdown.sizes import SIZES, CountdownSize
from policy_split.evaluation.tables import markdown

HELP = """Print the sizes of the built-in task: how many different problems each split has, the order of the numbers
aside, and how many the questions of a training are. No problem is in two splits. A count with "about" is scaled up from
a sample of the sets of numbers."""
TITLES = [
    "size",
    "numbers",
    "targets",
    "train",
    "held out",
    "test",
    "questions of a training",
    "of them different",
    "s",
]


def run(arguments: list[str]) -> int:
    parser = ArgumentParser(
        prog="policy-split countdown", description=HELP, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--size", nargs="+", choices=SIZES, default=list(SIZES), metavar="SIZE", help=", ".join(SIZES))
    parser.add_argument("--seed", type=int, default=1, help="Of the questions of a training (1).")
    chosen = parser.parse_args(arguments)
    print(markdown([TITLES, *(_row(name, SIZES[name], chosen.seed) for name in chosen.size)]))
    return 0


def _row(name: str, size: CountdownSize, seed: int) -> list[str]:
    task, started = size.task, time.perf_counter()
    questions = task.problems(size.train_questions, seed=seed)
    seconds = time.perf_counter() - started  # what making the questions takes
    pool = pool_of(task)
    counts = [f"{count:,}" if pool.exact else f"about {float(f'{count:.3g}'):,.0f}" for count in pool.problems.values()]
    numbers = f"{task.numbers} of 1 to {task.largest}"
    targets = f"1 to {task.largest_target}, {task.fewest_answers} or more answers"
    return [name, numbers, targets, *counts, f"{len(questions):,}", f"{different(questions):,}", f"{seconds:.1f}"]
