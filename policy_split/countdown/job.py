"""The main job: a small model from scratch on Countdown, warm start, Policy Split, and what it did to the two modes."""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from policy_split.config import PolicySplitConfig
from policy_split.evaluation.evaluate import KL_TITLES, format_table
from policy_split.modes import encode_prompt
from policy_split.run_folder.checkpoints import stopped_before_first
from policy_split.run_folder.output_dir import check_output_dir, remove_earlier_run
from policy_split.storage.whole_folder import replace_text
from policy_split.training.threads import choose_threads
from policy_split.training.trainer import PolicySplitTrainer
from policy_split.training.warm_start import Example, warm_start

from .beside import START, clear, compared, grpo_beside
from .grading import canonical, countdown_reward
from .problems import warm_start_examples
from .sizes import SIZES, CountdownSize, load_size, save_size

BEFORE = "before.json"  # the evaluation after the warm start, for a run that is resumed


def run_countdown(
    config: PolicySplitConfig,
    size: CountdownSize = SIZES["small"],
    *,
    resume: bool = False,
    resume_anyway: bool = False,
    beside: bool = False,
) -> dict[str, Any]:
    """Warm start, evaluate, train, evaluate again: writes results.json and table.md in config.output_dir.

    config: such as PolicySplitConfig(**size.settings, output_dir=...).
    resume: go on from the newest whole checkpoint in config.output_dir, with the first evaluation that before.json has
    kept; a run that was stopped before its first checkpoint starts over. resume_anyway: as of the trainer. beside:
    plain GRPO from the same warm start is trained too, in the folder grpo of the run's, in one process. Of several
    processes each makes the warm start, evaluates its share of the questions, and the first writes. Raises what
    `PolicySplitTrainer` raises, and ValueError for a run of another size.
    """
    started = time.perf_counter()
    if resume and load_size(Path(config.output_dir)) not in (None, size):
        raise ValueError(f"{config.output_dir} holds a run of another size of the task")
    tokenizer = size.tokenizer()
    model = size.model(tokenizer, config.seed)
    output = Path(config.output_dir)
    starts_over = resume and stopped_before_first(output)
    resume, overwrite = resume and not starts_over, config.overwrite_output_dir or starts_over
    check_output_dir(output, resume=resume, overwrite=overwrite)  # before what takes minutes
    train = size.training_questions(config.seed, fresh=config.fresh_questions)
    held_out = size.task.dataset(size.held_out_questions, seed=config.seed, split="held_out")
    trainer = PolicySplitTrainer(model, tokenizer, countdown_reward, train, replace(config, overwrite_output_dir=False))
    choose_threads(trainer)
    trainer.sources = {"size": next((name for name, each in SIZES.items() if each == size), None)}
    first, beside = trainer.accelerator.is_main_process, beside and trainer.accelerator.num_processes == 1
    if first:
        if overwrite and not resume:
            remove_earlier_run(output)
            clear(output)
        output.mkdir(parents=True, exist_ok=True)  # a run stopped in its warm start is found again by its folder
        save_size(size, output)
    if resume:
        before = json.loads((output / BEFORE).read_text())
    else:
        examples = warm_start_examples(size.task, size.warm_start_examples, seed=config.seed)
        shown = config if first else replace(config, disable_tqdm=True)
        warm_start_countdown(trainer.policy.bare, tokenizer, shown, size, examples, seed=config.seed)
        if beside:
            trainer.policy.bare.save_pretrained(output / START)
        before = trainer.evaluate(held_out, key=canonical)
        if first:
            replace_text(output / BEFORE, json.dumps(before, indent=1) + "\n")
    warm = time.perf_counter()
    trainer.train(resume_from_checkpoint=resume, resume_anyway=resume_anyway)
    trained = time.perf_counter()
    after = trainer.evaluate(held_out, key=canonical)
    results = {
        "algorithm": config.algorithm,
        "before": before,
        "after": after,
        "seconds": {
            "warm_start": warm - started,
            "training": trained - warm,
            "evaluation": time.perf_counter() - trained,
        },
    }
    if beside and (output / START).is_dir():  # not where a run goes on that had none
        results["num_tokens"] = trainer.progress.num_tokens
        results["grpo"] = grpo_beside(config, tokenizer, train, held_out, output)
    if first:
        replace_text(output / "results.json", json.dumps(results, indent=1) + "\n")
        replace_text(output / "table.md", report(results) + "\n")
    return results


def warm_start_countdown(
    model: PreTrainedModel,
    tokenizer: Any,
    config: PolicySplitConfig,
    size: CountdownSize,
    examples: Sequence[Example],
    *,
    seed: int,
) -> None:
    """Train the model in place on solved problems, as the size says, under both modes' prompts."""
    warm_start(
        model,
        tokenizer,
        examples,
        encode=lambda prompt, mode: encode_prompt(
            tokenizer, prompt, config.system_prompts[mode], place=config.high_entropy_place
        ),
        steps=size.warm_start_steps,
        batch_size=size.warm_start_batch_size,
        learning_rate=size.warm_start_learning_rate,
        seed=seed,
        paired=size.warm_start_paired,
        disable_tqdm=config.disable_tqdm,
    )


def report(results: dict[str, Any]) -> str:
    """The table of both modes before and after, and of Policy Split whether the run shows what it promises."""
    before, after = results["before"], results["after"]
    normal, high = after["normal"], after["high_entropy"]
    kl = [(title, before[name], after[name]) for name, title in KL_TITLES.items() if name in after]
    shown = [
        ("normal-mode accuracy went up", normal["accuracy"] > before["normal"]["accuracy"]),
        *((f"{name} grew {b:.4f} -> {a:.3f}, {a / b:.0f} times (at least 10)", a >= 10 * b) for name, b, a in kl),
        ("the high-entropy mode has the higher entropy", high["entropy"] > normal["entropy"]),
        (
            "the high-entropy mode gives more different correct answers",
            high["distinct_correct"] > normal["distinct_correct"],
        ),
    ]
    lines = [f"- {'yes' if holds else 'NO'}: {text}" for text, holds in shown]
    seconds = ", ".join(f"{name.replace('_', ' ')} {value:.0f} s" for name, value in results["seconds"].items())
    questions = f"{after['num_prompts']} held-out problems, {after['num_samples']} samples of each mode; {seconds}."
    promises = ["", *lines] if results.get("algorithm", "policy_split") == "policy_split" else []
    rival = ["", compared(results)] if "grpo" in results else []
    return "\n".join([format_table(before, after), "", questions, *promises, *rival])
