"""What a training is asked for: flags over a file of settings over what the run that goes on was started with."""

import argparse
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser

from policy_split.config import PolicySplitConfig
from policy_split.config.presets import PRESETS
from policy_split.countdown.sizes import SIZES, CountdownSize, find_size, load_size
from policy_split.data.datasets import DATASET_HELP
from policy_split.rewards.loading import REWARD_HELP
from policy_split.run_folder.checkpoints import CHECKPOINTS, checkpoints
from policy_split.run_folder.output_dir import CONFIG

from .settings_file import SOURCES, read_settings_file

HELP = """Train both modes of a model.

With no arguments: the built-in Countdown task with a small model from scratch, a few minutes on two CPU cores.
With --model, --dataset and --reward: any causal language model of transformers, any dataset with a
`prompt` column. A task of reasoning-gym is a dataset with its own reward:
--dataset 'reasoning-gym:countdown?size=2000&seed=0&min_numbers=3'.
With --resume alone: the run in output_dir goes on with all that it was started with. Flags win over --config,
and --config over --paper or --recommended and over what the run was started with."""
COUNTDOWN = "runs/countdown"
DEFAULT_SIZE = "first"


@dataclass
class Asked:
    config: PolicySplitConfig
    size: CountdownSize | None  # of the built-in task, None for a model of the user's
    resume: bool
    resume_anyway: bool
    sources: dict[str, Any]  # name or path of model, dataset, eval_dataset, rewards; or size
    beside: bool = False  # of the built-in task: plain GRPO too


def parse(arguments: list[str]) -> Asked:
    """Raises ValueError, FileNotFoundError and SystemExit (argparse's) for what is wrong."""
    own = _own_arguments()
    chosen, rest = own.parse_known_args(arguments)
    parser = _parser(own)
    given = read_settings_file(chosen.config) if chosen.config else {}
    if chosen.resume is not None:
        folder = _resumed_folder(chosen, rest, given)
        given = _of_run(folder, chosen, given) | given | {"output_dir": folder}
    for name in SOURCES:
        if getattr(chosen, name) is None:
            setattr(chosen, name, given.get(name))
    if isinstance(chosen.reward, str):
        chosen.reward = [chosen.reward]
    size = _size(chosen, given)
    defaults = {name: value for name, value in given.items() if name not in SOURCES}
    if chosen.preset:
        if chosen.resume is not None:
            raise ValueError(f"--{chosen.preset} is of a run that begins; one that goes on keeps its settings")
        defaults = PRESETS[chosen.preset] | defaults
    if size is not None:
        defaults = {**size.settings, "output_dir": free_folder(COUNTDOWN), **defaults}
    parser.set_defaults(**defaults)
    if chosen.preset and parser.parse_known_args(rest)[0].algorithm != "policy_split":
        parser.set_defaults(target_kl=given.get("target_kl"))  # of two modes, as a preset is
    config, *_ = parser.parse_args_into_dataclasses([*rest, *(["--help"] if "--help" in arguments else [])])
    sources = {name: getattr(chosen, name) for name in SOURCES}
    beside = size is not None and config.algorithm == "policy_split" and not chosen.alone
    return Asked(config, size, chosen.resume is not None, chosen.resume_anyway, sources, beside)


def _own_arguments() -> argparse.ArgumentParser:
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--model", help="Name or path of a causal language model; without it, Countdown from scratch.")
    own.add_argument("--dataset", help=f"{DATASET_HELP} with a `prompt` column.")
    own.add_argument("--eval_dataset", "--eval-dataset", help="The same for evaluation; reasoning-gym makes others.")
    own.add_argument("--reward", action="append", help=REWARD_HELP)
    own.add_argument("--size", choices=SIZES, help="Of the built-in task, from a minute to an hour on a GPU (first).")
    presets = own.add_mutually_exclusive_group()
    for name, said in (("recommended", "found better by a study, docs/comparison.md"), ("paper", "the paper's")):
        presets.add_argument(
            f"--{name}", action="store_const", const=name, dest="preset", help=f"The method's settings: {said}."
        )
    own.add_argument(
        "--alone", action="store_true", help="Of the built-in task: without plain GRPO from the same start beside it."
    )
    own.add_argument("--config", metavar="FILE", help="YAML with any of these by name, such as a run's config.yaml.")
    own.add_argument(
        "--resume", nargs="?", const="", metavar="RUN",
        help="Go on from the newest whole checkpoint in RUN, by default output_dir, as it was started.",
    )  # fmt: skip
    own.add_argument(
        "--resume_anyway", "--resume-anyway", action="store_true",
        help="Go on even where method, model or data are not those of then; says what differs.",
    )  # fmt: skip
    return own


def _parser(own: argparse.ArgumentParser) -> HfArgumentParser:
    settings: Any = PolicySplitConfig
    return HfArgumentParser(
        settings, parents=[own], prog="policy-split train", description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip


def _resumed_folder(chosen: argparse.Namespace, rest: list[str], given: dict[str, Any]) -> str:
    output = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    output.add_argument("--output_dir", "--output-dir")
    flag = output.parse_known_args(rest)[0].output_dir
    if chosen.resume and flag and Path(chosen.resume).absolute() != Path(flag).absolute():
        raise ValueError(f"--resume {chosen.resume} and --output_dir {flag} name two folders; give one of them")
    folder = chosen.resume or flag or given.get("output_dir")
    if folder is None:
        if chosen.model:
            raise ValueError("--resume needs the run's folder: --resume RUN")
        folder = newest_folder(COUNTDOWN)
    return str(folder)


def _of_run(folder: str, chosen: argparse.Namespace, given: dict[str, Any]) -> dict[str, Any]:
    """What the run was started with, as far as its folder says."""
    path = Path(folder)
    if (path / CONFIG).is_file():
        settings = read_settings_file(path / CONFIG, strict=False)
        lacking = [name for name in ("model", "dataset", "reward") if name in settings and settings[name] is None]
        lacking = [name for name in lacking if not (getattr(chosen, name) or given.get(name))]
        if lacking:
            flags = ", ".join(f"--{name}" for name in lacking)
            raise ValueError(
                f"{folder}: a run that Python has started with objects that have no name; give {flags} as well, or go "
                f"on in Python by train(resume_from_checkpoint=True)"
            )
        return settings
    named = chosen.model or given.get("model")
    if not named and not load_size(path) and (folder != newest_folder(COUNTDOWN) or checkpoints(path)):
        run = path.absolute().parent.parent
        if path.absolute().parent.name == CHECKPOINTS and (run / CONFIG).is_file():
            raise ValueError(
                f"--resume {folder}: a checkpoint; its run is {run}, which --resume takes and goes on with the newest; "
                f"with this one, train(resume_from_checkpoint={folder!r}) in Python"
            )
        what = "there is no such folder" if not path.is_dir() else f"there is no run in it (no {CONFIG})"
        raise FileNotFoundError(f"--resume {folder}: {what}; give --model, --dataset and --reward to start one")
    if checkpoints(path):
        warnings.warn(f"{folder} has no {CONFIG}: settings that are not given are the defaults of now", stacklevel=2)
    return {}


def _size(chosen: argparse.Namespace, given: dict[str, Any]) -> CountdownSize | None:
    """Of the built-in task; None where a model is given. ValueError for what does not go together."""
    if chosen.model:
        if chosen.size:
            raise ValueError(f"--size {chosen.size} is of the built-in Countdown task, which --model leaves aside")
        return None
    if "model" in given:
        raise ValueError(
            f"--config {chosen.config}: settings of a run whose model was an object of Python; give --model as well"
        )
    named = [name for name in ("dataset", "eval_dataset", "reward") if getattr(chosen, name)]
    if named:
        raise ValueError(f"--{named[0]} needs --model; without it the built-in Countdown task is trained")
    kept = load_size(Path(given["output_dir"])) if chosen.resume is not None and not chosen.size else None
    return kept or find_size(chosen.size or DEFAULT_SIZE)


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
