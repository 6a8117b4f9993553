"""The main job: a small model from scratch on Countdown, warm start, Policy Split, and what it did to the two modes."""

import json
import time
from pathlib import Path
from typing import Any

from .checkpoints import stopped_before_first
from .config import PolicySplitConfig
from .countdown import (
    HIGH_ENTROPY_PROMPT,
    Countdown,
    canonical,
    countdown_model,
    countdown_reward,
    countdown_tokenizer,
    warm_start_examples,
)
from .evaluate import KL_TITLES, evaluate_modes, format_table
from .modes import encode_prompt
from .trainer import PolicySplitTrainer
from .warm_start import warm_start
from .whole_folder import replace_text

# What differs from the paper's settings, and why: small models from scratch need the code form of the clamp with a
# larger eta, and the share correction, without which the modes drift apart and the normal mode loses accuracy.
DEFAULTS: dict[str, Any] = {
    "seed": 1,
    "max_steps": 400,
    "prompts_per_step": 64,
    "num_generations": 8,
    "per_device_train_batch_size": 2048,
    "max_completion_length": 6,
    "learning_rate": 6e-4,
    "lr_scheduler_type": "constant",
    "clamp": "code",
    "eta": 0.6,
    "share_correction": "truncated",
    "high_entropy_prompt": HIGH_ENTROPY_PROMPT,
    "save_steps": 50,
    "save_total_limit": 2,
}
# Large enough that the small model cannot learn the problems by heart, which would take the diversity away.
TASK = Countdown(numbers=3, largest=12, largest_target=40)
BEFORE = "before.json"  # the evaluation after the warm start, for a run that is resumed
TRAIN_QUESTIONS, HELD_OUT_QUESTIONS, WARM_START_EXAMPLES, WARM_START_STEPS = 6000, 512, 8000, 1500


def run_countdown(
    config: PolicySplitConfig,
    *,
    warm_start_steps: int = WARM_START_STEPS,
    held_out_questions: int = HELD_OUT_QUESTIONS,
    resume: bool = False,
) -> dict[str, Any]:
    """Warm start, evaluate, train, evaluate again: writes results.json and table.md in config.output_dir.

    resume: go on from the newest whole checkpoint in config.output_dir, with the first evaluation that before.json has
    kept; a run that was stopped before its first checkpoint starts over. Raises what `PolicySplitTrainer` raises.
    """
    started = time.perf_counter()
    tokenizer = countdown_tokenizer()
    model = countdown_model(tokenizer, seed=config.seed)
    if resume and stopped_before_first(Path(config.output_dir)):
        resume, config.overwrite_output_dir = False, True
    train = TASK.dataset(TRAIN_QUESTIONS, seed=config.seed)
    held_out = TASK.dataset(held_out_questions, seed=config.seed, held_out=True)
    trainer = PolicySplitTrainer(model, tokenizer, countdown_reward, train, config)

    output = Path(config.output_dir)
    output.mkdir(parents=True, exist_ok=True)  # a run stopped in its warm start is found again by its folder
    measured = (model, tokenizer, held_out, countdown_reward, config)
    if resume:
        before = json.loads((output / BEFORE).read_text())
    else:
        warm_start(
            model,
            tokenizer,
            warm_start_examples(TASK, WARM_START_EXAMPLES, seed=config.seed),
            encode=lambda prompt, mode: encode_prompt(tokenizer, prompt, config.system_prompts[mode]),
            steps=warm_start_steps,
            seed=config.seed,
        )
        before = evaluate_modes(*measured, key=canonical)
        replace_text(output / BEFORE, json.dumps(before, indent=1) + "\n")
    warm = time.perf_counter()
    trainer.train(resume_from_checkpoint=resume)
    trained = time.perf_counter()
    after = evaluate_modes(*measured, key=canonical)
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
    replace_text(output / "results.json", json.dumps(results, indent=1) + "\n")
    replace_text(output / "table.md", report(results) + "\n")
    return results


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
    return "\n".join([format_table(before, after), "", questions, *promises])
