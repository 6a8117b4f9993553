"""One piece of a study in a process of its own: the common start, or one run.

python -m policy_split.study.work FOLDER     FOLDER/spec.json says what

Either ends with evaluation.json in the folder, or can be started again: a run goes on from its newest checkpoint.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel

from policy_split.config import PolicySplitConfig
from policy_split.countdown.sizes import CountdownSize, size_of_dict
from policy_split.evaluation.evaluate import evaluate_in_detail
from policy_split.models.policy import load_model, load_tokenizer
from policy_split.run_folder.checkpoints import stopped_before_first
from policy_split.run_folder.output_dir import remove_earlier_run
from policy_split.storage.whole_folder import replace_text

from . import countdown_runs, words_runs
from .milestones import MeasuredTrainer, save_milestone
from .place import EVALUATION, MODEL, QUESTIONS, QUESTIONS_SEED, SPEC, TRAIN, TRAINED, WARM_START, on_device
from .words_runs import WordsSize


def main(folder: Path) -> int:
    """Do what the folder's spec says; 130 after Ctrl-C or SIGTERM, its state saved."""
    spec = json.loads((folder / SPEC).read_text(encoding="utf-8"))
    torch.set_num_threads(spec["threads"])
    runs, size = task_of(spec)
    start = folder.parent / WARM_START
    try:
        if "variant" in spec:
            model, tokenizer, config = _run(folder, spec, runs, size)
        else:
            runs.prepare(folder, size, spec["split"])
            config = PolicySplitConfig(**size.settings)
            model, tokenizer = _loaded(folder / MODEL, config)
    except KeyboardInterrupt as stopped:
        print(stopped, file=sys.stderr)
        return 130
    evaluation = _evaluated(model, tokenizer, config, start, spec, runs)
    replace_text(folder / EVALUATION, json.dumps(evaluation) + "\n")
    return 0


def _evaluated(
    model: PreTrainedModel,
    tokenizer: Any,
    config: PolicySplitConfig,
    start: Path,
    spec: Mapping[str, Any],
    runs: ModuleType,
) -> dict[str, Any]:
    questions, samples = Dataset.load_from_disk(start / QUESTIONS), spec["samples"]
    # a batch as large as one of the training, and the same draws for every run
    prompts = max(1, config.prompts_per_step * config.num_generations // samples)
    config = replace(config, prompts_per_step=prompts, seed=QUESTIONS_SEED)
    reward = runs.reward(start)
    return evaluate_in_detail(model, tokenizer, questions, reward, config, samples, key=runs.key, seed=QUESTIONS_SEED)


def task_of(spec: Mapping[str, Any]) -> tuple[ModuleType, CountdownSize | WordsSize]:
    """The module that prepares and grades, and the size that it takes."""
    fields = spec["size"]
    return (words_runs, WordsSize(**fields)) if "model" in fields else (countdown_runs, size_of_dict(fields))


def _loaded(folder: Path, config: PolicySplitConfig) -> tuple[PreTrainedModel, Any]:
    return on_device(load_model(str(folder), config)), load_tokenizer(None, str(folder))


def _run(
    folder: Path, spec: Mapping[str, Any], runs: ModuleType, size: CountdownSize | WordsSize
) -> tuple[PreTrainedModel, Any, PolicySplitConfig]:
    config = PolicySplitConfig(**spec["settings"], output_dir=str(folder))
    if (folder / TRAINED).is_file():  # trained, and stopped before its evaluation was there
        return *_loaded(folder, config), config
    resume = not stopped_before_first(folder)
    if not resume:
        remove_earlier_run(folder)
    runs.mark(folder, size)
    start = folder.parent / WARM_START
    model, tokenizer = load_model(str(start / MODEL), config), load_tokenizer(None, str(start / MODEL))
    reward, train = runs.reward(start), Dataset.load_from_disk(start / TRAIN)
    trainer = MeasuredTrainer(model, tokenizer, reward, train, config)
    trainer.every = spec.get("every")
    trainer.measure = lambda step: save_milestone(
        folder, step, _evaluated(trainer.policy.bare, tokenizer, config, start, spec, runs)
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer.policy.bare, tokenizer, config


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
