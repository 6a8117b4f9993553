"""One piece of a study in a process of its own: the common warm start, or one run.

python -m policy_split.study.work FOLDER     FOLDER/spec.json says what

Either ends with evaluation.json in the folder, or can be started again: a run goes on from its newest checkpoint.
"""

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from policy_split.config import PolicySplitConfig
from policy_split.countdown.grading import canonical, countdown_reward
from policy_split.countdown.job import warm_start_countdown
from policy_split.countdown.problems import warm_start_examples
from policy_split.countdown.sizes import CountdownSize, save_size, size_of_dict
from policy_split.evaluation.evaluate import evaluate_in_detail
from policy_split.models.policy import placed
from policy_split.run_folder.checkpoints import stopped_before_first
from policy_split.run_folder.output_dir import remove_earlier_run
from policy_split.storage.whole_folder import ASIDE, publish, replace_text
from policy_split.training.trainer import PolicySplitTrainer

from .plan import QUESTIONS_SEED, WARM_START_SEED

SPEC, EVALUATION, WARM_START = "spec.json", "evaluation.json", "warm-start"
MODEL, TRAIN, QUESTIONS, EXAMPLES = "model", "train", "questions", "examples"


def main(folder: Path) -> int:
    """Do what the folder's spec says; 130 after Ctrl-C or SIGTERM, its state saved."""
    spec = json.loads((folder / SPEC).read_text(encoding="utf-8"))
    torch.set_num_threads(spec["threads"])
    try:
        is_run = "variant" in spec
        model, tokenizer, config = (_run if is_run else _warm)(folder, spec)
    except KeyboardInterrupt as stopped:
        print(stopped, file=sys.stderr)
        return 130
    questions = Dataset.load_from_disk(folder.parent / WARM_START / QUESTIONS)
    evaluation = _evaluated(model, tokenizer, config, questions, spec["samples"])
    replace_text(folder / EVALUATION, json.dumps(evaluation) + "\n")
    return 0


def _device(model: PreTrainedModel) -> PreTrainedModel:
    return placed(model, "cuda" if torch.cuda.is_available() else "cpu")


def _warm(folder: Path, spec: Mapping[str, Any]) -> tuple[PreTrainedModel, Any, PolicySplitConfig]:
    """The warm start and the problems of every run, made once; stopped on the way, what is there stays."""
    size = size_of_dict(spec["size"])
    config, tokenizer = PolicySplitConfig(**size.settings), size.tokenizer()
    for name, count, split in (
        (TRAIN, size.train_questions, "train"),
        (QUESTIONS, size.held_out_questions, spec["split"]),
    ):
        _once(folder / name, partial(_save_problems, size, count, split))
    _once(folder / EXAMPLES, partial(_save_examples, size))

    def train(path: Path) -> None:
        model = _device(size.model(tokenizer, WARM_START_SEED))
        examples = [(row["prompt"], row["answers"]) for row in Dataset.load_from_disk(folder / EXAMPLES)]
        warm_start_countdown(model, tokenizer, config, size, examples, seed=WARM_START_SEED)
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)

    _once(folder / MODEL, train)
    return _device(AutoModelForCausalLM.from_pretrained(folder / MODEL)), tokenizer, config


def _once(folder: Path, save: Callable[[Path], None]) -> None:
    """Let `save` fill the folder unless it is there: as a whole or not at all."""
    if folder.is_dir():
        return
    aside = folder.with_name(f"{ASIDE}{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    save(aside)
    publish(aside, folder)


def _save_problems(size: CountdownSize, count: int, split: str, path: Path) -> None:
    size.task.dataset(count, seed=QUESTIONS_SEED, split=split).save_to_disk(path)


def _save_examples(size: CountdownSize, path: Path) -> None:
    examples = warm_start_examples(size.task, size.warm_start_examples, seed=WARM_START_SEED)
    columns = dict(zip(("prompt", "answers"), zip(*examples, strict=True), strict=True))
    Dataset.from_dict(columns).save_to_disk(path)


def _run(folder: Path, spec: Mapping[str, Any]) -> tuple[PreTrainedModel, Any, PolicySplitConfig]:
    size = size_of_dict(spec["size"])
    config = PolicySplitConfig(**spec["settings"], output_dir=str(folder))
    if (folder / "config.json").is_file():  # trained, and stopped before its evaluation was there
        return _device(AutoModelForCausalLM.from_pretrained(folder)), AutoTokenizer.from_pretrained(folder), config
    resume = not stopped_before_first(folder)
    if not resume:
        remove_earlier_run(folder)
    save_size(size, folder)
    start = folder.parent / WARM_START
    model = AutoModelForCausalLM.from_pretrained(start / MODEL)
    tokenizer, train = AutoTokenizer.from_pretrained(start / MODEL), Dataset.load_from_disk(start / TRAIN)
    trainer = PolicySplitTrainer(model, tokenizer, countdown_reward, train, config)
    trainer.train(resume_from_checkpoint=resume)
    return trainer.policy.bare, tokenizer, config


def _evaluated(
    model: PreTrainedModel, tokenizer: Any, config: PolicySplitConfig, questions: Dataset, samples: int
) -> dict[str, Any]:
    # a batch as large as one of the training, and the same draws for every run
    prompts = max(1, config.prompts_per_step * config.num_generations // samples)
    config = replace(config, prompts_per_step=prompts, seed=QUESTIONS_SEED)
    return evaluate_in_detail(
        model, tokenizer, questions, countdown_reward, config, samples, key=canonical, seed=QUESTIONS_SEED
    )


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
