"""policy-split train: the built-in task, or any model on any questions."""

import argparse
import sys
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import HfArgumentParser

from policy_split.config import PolicySplitConfig
from policy_split.countdown import job
from policy_split.countdown.sizes import SIZES, CountdownSize, find_size
from policy_split.data.datasets import DATASET_HELP, load_prompts
from policy_split.data.reasoning_gym import own_reward
from policy_split.models.gguf import BASE_MODEL, converted, is_converted
from policy_split.models.source import gguf_file
from policy_split.rewards.loading import REWARD_HELP
from policy_split.run_folder.checkpoints import stopped_before_first
from policy_split.run_folder.output_dir import check_output_dir, earlier_run
from policy_split.run_folder.record import source_name
from policy_split.storage.whole_folder import remove
from policy_split.training.trainer import PolicySplitTrainer

HELP = """Train both modes of a model.

With no arguments: the built-in Countdown task with a small model from scratch, a few minutes on two CPU cores.
With --model, --dataset and --reward: any causal language model of transformers, any dataset with a
`prompt` column. A task of reasoning-gym is a dataset with its own reward:
--dataset 'reasoning-gym:countdown?size=2000&seed=0&min_numbers=3'."""


def run(arguments: list[str]) -> int:
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--model", help="Name or path of a causal language model; without it, Countdown from scratch.")
    own.add_argument("--dataset", help=f"{DATASET_HELP} with a `prompt` column.")
    own.add_argument("--eval_dataset", "--eval-dataset", help="The same for evaluation; reasoning-gym makes others.")
    own.add_argument("--reward", action="append", help=REWARD_HELP)
    own.add_argument("--size", choices=SIZES, help="Of the built-in task, from a minute to an hour on a GPU (small).")
    own.add_argument("--resume", action="store_true", help="Go on from the newest whole checkpoint in output_dir.")
    chosen, rest = own.parse_known_args(arguments)
    settings: Any = PolicySplitConfig
    parser = HfArgumentParser(
        settings, parents=[own], prog="policy-split train", description=HELP,
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


def train_countdown(config: PolicySplitConfig, size: CountdownSize, chosen: argparse.Namespace) -> int:
    given = [name for name in ("dataset", "eval_dataset", "reward") if getattr(chosen, name)]
    if given:
        raise ValueError(f"--{given[0]} needs --model; without it the built-in Countdown task is trained")
    results = job.run_countdown(config, size, resume=chosen.resume)
    said = f"\n{job.report(results)}\n\nresults: {Path(config.output_dir).absolute()}"
    PartialState().on_main_process(print)(said)
    return 0


def train_model(config: PolicySplitConfig, chosen: argparse.Namespace) -> int:
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
    resume = chosen.resume and not starts_over
    with PartialState().main_process_first():
        model = base_model(chosen.model, config, resume=resume)
    trainer = PolicySplitTrainer(model, None, reward, dataset, config, eval_dataset=evaluated)
    trainer.sources["model"] = source_name(chosen.model)  # which is there when the run's folder has moved
    trainer.train(resume_from_checkpoint=resume)
    trainer.accelerator.print(f"results: {Path(config.output_dir).absolute()}")
    return 0


def base_model(name: str, config: PolicySplitConfig, *, resume: bool) -> str:
    """The model's name, or, for a GGUF file, the folder in the run's into which it is converted once."""
    gguf, folder = gguf_file(name), Path(config.output_dir).absolute() / BASE_MODEL
    if gguf is not None:
        # before what takes long
        check_output_dir(Path(config.output_dir), resume=resume, overwrite=config.overwrite_output_dir)
        replace = config.overwrite_output_dir or not earlier_run(folder.parent)
        return converted(gguf, folder, config, replace=replace)
    if config.overwrite_output_dir and is_converted(folder) and PartialState().is_main_process:
        remove(folder)  # of a run that is written over
    return name


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
