"""Plain GRPO from the same warm start, with as many responses: what the main job's two modes are held against."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoModelForCausalLM

from policy_split.config import PolicySplitConfig
from policy_split.evaluation.tables import markdown
from policy_split.run_folder.checkpoints import stopped_before_first
from policy_split.run_folder.model_folder import holds_model
from policy_split.run_folder.output_dir import remove_earlier_run
from policy_split.storage.whole_folder import remove, replace_text
from policy_split.training.trainer import PolicySplitTrainer

from .grading import canonical, countdown_reward

START, FOLDER, RESULT = "warm-start", "grpo", "evaluation-after.json"  # in the folder of the main job
# what only two modes have
NEUTRAL = {"regularizer": "advantage", "bonus_estimator": "sampled", "log_exact_kl": False, "target_kl": None}


def clear(output: Path) -> None:
    """Remove what an earlier main job has left of its own here."""
    for folder in (output / FOLDER, output / START):  # no folder of another's is taken for ours: ours has both
        if (output / START).is_dir() and folder.is_dir():
            remove(folder)


def grpo_beside(
    config: PolicySplitConfig, tokenizer: Any, train: Dataset, held_out: Dataset, output: Path
) -> dict[str, Any]:
    """Train it in output/grpo from output/warm-start, or go on with it, and evaluate: {"after", "num_tokens"}.

    As many steps of as many responses: a question's 2n are all of the normal prompt.
    """
    folder = output / FOLDER
    if (folder / RESULT).is_file():
        result: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        return result
    resume = folder.is_dir() and not stopped_before_first(folder)
    if folder.is_dir() and not resume:
        remove_earlier_run(folder)
    trained = resume and holds_model(folder)
    settings: dict[str, Any] = {
        **NEUTRAL,
        "algorithm": "grpo",
        "output_dir": str(folder),
        "overwrite_output_dir": False,
    }
    model = AutoModelForCausalLM.from_pretrained(folder if trained else output / START)
    trainer = PolicySplitTrainer(model, tokenizer, countdown_reward, train, replace(config, **settings))
    if not trained:
        trainer.train(resume_from_checkpoint=resume)
    rows = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    result = {
        "after": trainer.evaluate(held_out, key=canonical),
        "num_tokens": json.loads(rows[-1])["num_tokens"],
        "seconds": sum(json.loads(row)["step_time"] for row in rows),
    }
    replace_text(folder / RESULT, json.dumps(result, indent=1) + "\n")
    return result


MEASURES = {  # name -> (title, places)
    "accuracy": ("accuracy", 3),
    "best_of_n": ("best of {n}", 3),
    "distinct_correct": ("different correct of {n}", 2),
    "entropy": ("entropy (nats/token)", 3),
}


def compared(results: dict[str, Any]) -> str:
    """Both modes and GRPO side by side, and who is ahead in what."""
    ours, grpo = results["after"], results["grpo"]
    tried = {"normal mode": ours["normal"], "high-entropy mode": ours["high_entropy"], "GRPO": grpo["after"]["normal"]}
    titles = [title.format(n=ours["num_samples"]) for title, _ in MEASURES.values()]
    rows = [["", *titles]]
    for name, values in tried.items():
        rows.append([name, *(f"{values[measure]:.{places}f}" for measure, (_, places) in MEASURES.items())])
    ahead = []
    for (measure, (_, places)), title in zip(MEASURES.items(), titles, strict=True):
        found = {name: round(values[measure], places) for name, values in tried.items()}
        best = [name for name, value in found.items() if value == max(found.values())]
        ahead.append(f"- {title}: {' and '.join(best)}")
    spent = (
        f"The same steps and responses; GRPO generated {grpo['num_tokens']:,} tokens, Policy Split "
        f"{results['num_tokens']:,}; its steps took {grpo['seconds']:.0f} s. Ahead, of one seed, which is no result:"
    )
    return "\n".join([markdown(rows), "", spent, "", *ahead])
