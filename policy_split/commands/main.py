"""The command line.

policy-split train                              Countdown with a small model from scratch, on the CPU
policy-split train --model NAME --dataset DATA --reward FILE.py:FUNCTION
policy-split eval RUN_OR_MODEL [--against OTHER]  pass@k, diversity and KL of both modes, and a comparison
policy-split report RUN [RUN ...]               runs as one HTML file: curves, tables, samples
policy-split study                              algorithms compared over several seeds, on the built-in task
policy-split plot RUN                           a run's curves as a picture
policy-split doctor                             what is installed, what is missing and what that costs
"""

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a command imports what it needs: doctor has to run where what the others need is broken
    from .config import PolicySplitConfig
    from .countdown_sizes import CountdownSize

COMMANDS = {  # where the function of each is: (module, name)
    "train": ("policy_split.cli", "train"),
    "eval": ("policy_split.eval_command", "run"),
    "report": ("policy_split.report", "run"),
    "study": ("policy_split.study.command", "run"),
    "plot": ("policy_split.cli", "plot"),
    "doctor": ("policy_split.doctor", "run"),
}
TRAIN_HELP = """Train both modes of a model.

With no arguments: the built-in Countdown task with a small model from scratch, a few minutes on two CPU cores.
With --model, --dataset and --reward: any causal language model of transformers, any dataset with a
`prompt` column. A task of reasoning-gym is a dataset with its own reward:
--dataset 'reasoning-gym:countdown?size=2000&seed=0&min_numbers=3'."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns 0, 2 for arguments or data that are wrong, said in one line, or 130 after Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] not in COMMANDS:
        asked = bool(arguments) and arguments[0] in ("-h", "--help")
        print(__doc__.strip(), file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    try:
        return find_command(arguments[0])(arguments[1:])
    except (ValueError, TypeError, LookupError, ImportError, OSError) as error:
        said = "; ".join([str(error), *getattr(error, "__notes__", ())])
        print(f"policy-split {arguments[0]}: error: {said}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        print(f"policy-split {arguments[0]}: {str(stopped) or 'stopped at once'}", file=sys.stderr)
        return 130


def find_command(name: str) -> Callable[[list[str]], int]:
    module, function = COMMANDS[name]
    found: Callable[[list[str]], int] = getattr(importlib.import_module(module), function)
    return found


def train(arguments: list[str]) -> int:
    from transformers import HfArgumentParser

    from .config import PolicySplitConfig
    from .countdown_sizes import SIZES, find_size
    from .data import DATASET_HELP
    from .rewards import REWARD_HELP

    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--model", help="Name or path of a causal language model; without it, Countdown from scratch.")
    own.add_argument("--dataset", help=f"{DATASET_HELP} with a `prompt` column.")
    own.add_argument("--eval_dataset", "--eval-dataset", help="The same for evaluation; reasoning-gym makes others.")
    own.add_argument("--reward", action="append", help=REWARD_HELP)
    own.add_argument("--size", choices=SIZES, help="Of the built-in task, from a minute to an hour on a GPU (small).")
    own.add_argument("--resume", action="store_true", help="Go on from the newest whole checkpoint in output_dir.")
    chosen, rest = own.parse_known_args(arguments)
    parser = HfArgumentParser(
        PolicySplitConfig, parents=[own], prog="policy-split train", description=TRAIN_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    size = find_size(chosen.size or "small")
    if chosen.model is None:
        folder = (newest_folder if chosen.resume else free_folder)("runs/countdown")
        parser.set_defaults(**size.settings, output_dir=folder)
    config, *_ = parser.parse_args_into_dataclasses([*rest, *(["--help"] if "--help" in arguments else [])])
    if chosen.model is None:
        return train_countdown(config, size, chosen)
    return train_model(config, chosen)


def train_countdown(config: "PolicySplitConfig", size: "CountdownSize", chosen: argparse.Namespace) -> int:
    from accelerate import PartialState

    from . import countdown_job

    given = [name for name in ("dataset", "eval_dataset", "reward") if getattr(chosen, name)]
    if given:
        raise ValueError(f"--{given[0]} needs --model; without it the built-in Countdown task is trained")
    results = countdown_job.run_countdown(config, size, resume=chosen.resume)
    said = f"\n{countdown_job.report(results)}\n\nresults: {Path(config.output_dir).absolute()}"
    PartialState().on_main_process(print)(said)
    return 0


def train_model(config: "PolicySplitConfig", chosen: argparse.Namespace) -> int:
    from .checkpoints import stopped_before_first
    from .data import load_prompts
    from .gym_tasks import own_reward
    from .trainer import PolicySplitTrainer

    if chosen.size:
        raise ValueError(f"--size {chosen.size} is one of the built-in Countdown task, which --model leaves aside")
    if not chosen.dataset:
        raise ValueError("--model needs --dataset as well, such as --dataset questions.jsonl")
    dataset = load_prompts(chosen.dataset)
    evaluated = None if chosen.eval_dataset is None else load_prompts(chosen.eval_dataset, held_out=True)
    reward = chosen.reward or own_reward(dataset)
    if reward is None:
        raise ValueError("--model needs --reward as well, such as --reward my_rewards.py:reward")
    starts_over = chosen.resume and stopped_before_first(Path(config.output_dir))
    if starts_over:
        print(f"{config.output_dir}: no checkpoint yet, the run starts over", file=sys.stderr)
        config.overwrite_output_dir = True
    trainer = PolicySplitTrainer(chosen.model, None, reward, dataset, config, eval_dataset=evaluated)
    trainer.train(resume_from_checkpoint=chosen.resume and not starts_over)
    trainer.accelerator.print(f"results: {Path(config.output_dir).absolute()}")
    return 0


def plot(arguments: list[str]) -> int:
    from .plot import plot_run

    parser = argparse.ArgumentParser(prog="policy-split plot", description="Draw a run's curves into curves.png.")
    parser.add_argument("run", help="Folder of the run: the output_dir of its training.")
    print(f"curves: {plot_run(parser.parse_args(arguments).run).absolute()}")
    return 0


def free_folder(path: str) -> str:
    """The path itself, or path-2, path-3, ...: an earlier run is never written over unasked."""
    number, candidate = 1, path
    while Path(candidate).exists():
        number += 1
        candidate = f"{path}-{number}"
    return candidate


def newest_folder(path: str) -> str:
    """The newest of path, path-2, path-3, ... as `free_folder` has given them out; the path itself if there is none."""
    number, newest = 1, path
    while Path(candidate := path if number == 1 else f"{path}-{number}").exists():
        number, newest = number + 1, candidate
    return newest


if __name__ == "__main__":
    sys.exit(main())
