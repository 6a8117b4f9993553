"""policy-split train: the built-in task, or any model on any questions."""

import sys
from pathlib import Path

from accelerate import PartialState

from policy_split.config import PolicySplitConfig
from policy_split.countdown import job
from policy_split.countdown.sizes import CountdownSize
from policy_split.data.datasets import load_prompts
from policy_split.models.gguf import BASE_MODEL, converted, is_converted, kept_conversion
from policy_split.models.source import gguf_file
from policy_split.rewards.own import brings_reward, reward_of
from policy_split.run_folder.checkpoints import stopped_before_first
from policy_split.run_folder.output_dir import check_output_dir, earlier_run
from policy_split.run_folder.record import source_name
from policy_split.storage.whole_folder import remove
from policy_split.training.threads import choose_threads
from policy_split.training.trainer import PolicySplitTrainer

from .train_arguments import Asked, parse


def run(arguments: list[str]) -> int:
    asked = parse(arguments)
    return train_model(asked) if asked.size is None else train_countdown(asked, asked.size)


def train_countdown(asked: Asked, size: CountdownSize) -> int:
    resume = {"resume": asked.resume, "resume_anyway": asked.resume_anyway}
    results = job.run_countdown(asked.config, size, beside=asked.beside, **resume)
    said = f"\n{job.report(results)}\n\nresults: {Path(asked.config.output_dir).absolute()}"
    PartialState().on_main_process(print)(said)
    return 0


def train_model(asked: Asked) -> int:
    config, sources, output = asked.config, asked.sources, Path(asked.config.output_dir)
    if not sources["dataset"]:
        raise ValueError("--model needs --dataset as well, such as --dataset questions.jsonl")
    starts_over = asked.resume and stopped_before_first(output)
    if starts_over:
        print(f"{config.output_dir}: no checkpoint yet, the run starts over", file=sys.stderr)
        config.overwrite_output_dir = True
    resume = asked.resume and not starts_over
    check_output_dir(output, resume=resume, overwrite=config.overwrite_output_dir)  # before what takes long
    dataset = load_prompts(sources["dataset"])
    evaluated = None if sources["eval_dataset"] is None else load_prompts(sources["eval_dataset"], held_out=True)
    if not sources["reward"] and not brings_reward(dataset):
        raise ValueError("--model needs --reward as well, such as --reward my_rewards.py:reward")
    with PartialState(cpu=config.use_cpu).main_process_first():
        model = base_model(sources["model"], config)
    trainer = PolicySplitTrainer(
        model, None, sources["reward"] or reward_of(dataset, model), dataset, config, eval_dataset=evaluated
    )
    trainer.sources = {name: source_name(value) for name, value in sources.items() if value is not None}
    choose_threads(trainer)
    trainer.train(resume_from_checkpoint=resume, resume_anyway=asked.resume_anyway)
    trainer.accelerator.print(f"results: {output.absolute()}")
    return 0


def base_model(name: str, config: PolicySplitConfig) -> str:
    """The model's name, or, for a GGUF file, the folder in the run's into which it is converted once.

    That folder serves a run that goes on even where the file has gone.
    """
    gguf, folder = gguf_file(name), Path(config.output_dir).absolute() / BASE_MODEL
    if gguf is not None:
        replace = config.overwrite_output_dir or not earlier_run(folder.parent)
        return converted(gguf, folder, config, replace=replace)
    kept = kept_conversion(name, folder, config)
    if kept is not None:
        return kept
    if config.overwrite_output_dir and is_converted(folder) and PartialState().is_main_process:
        remove(folder)  # of a run that is written over
    return name
