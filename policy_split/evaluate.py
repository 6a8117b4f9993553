"""How good and how different the answers of both modes are, on questions that were not trained on."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import PreTrainedModel

from .config import PolicySplitConfig
from .data import as_prompts, longest_prompt
from .metrics import Sums, add_sums, means, rollout_sums, sum_and_count
from .models import Policy, check_fit
from .modes import MODE_NAMES, MODES
from .rewards import RewardFunction, as_reward_functions, check_columns
from .rollout import Rollout, make_rollout, score_rollout
from .sampling import seed_of

Key = Callable[[str], Hashable]
KL_TITLES = {
    "kl_high_normal": "KL(high-entropy || normal)",
    "kl_normal_high": "KL(normal || high-entropy)",
    "exact_kl_high_normal": "exact KL(high-entropy || normal)",
    "exact_kl_normal_high": "exact KL(normal || high-entropy)",
}


def plain_text(completion: str) -> str:
    """The text with every run of white space as one space: the default key by which correct completions differ."""
    return " ".join(completion.split())


def evaluate_modes(
    model: PreTrainedModel,
    tokenizer: Any,
    dataset: Dataset | Sequence[Mapping[str, Any]] | str,
    reward_funcs: Any,
    config: PolicySplitConfig,
    num_samples: int = 8,
    *,
    key: Key = plain_text,
    correct_reward: float = 1.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Sample `num_samples` responses of each mode to every question and measure both modes.

    Returns {"normal": m, "high_entropy": m, "kl_high_normal", "kl_normal_high", "num_samples", "num_prompts"} with m:
    `accuracy` (mean reward; pass@1 if rewards are 0 or 1), `best_of_n` (share of questions with a correct response),
    `distinct_correct` (different keys of correct responses per question, mean), `entropy` (nats per token),
    `mean_length` (tokens). Correct: a reward of at least `correct_reward`. KLs in nats per token, over the responses of
    the first-named mode; if config.exact_kl also "exact_kl_high_normal" and "exact_kl_normal_high". A function of the
    model, the questions and (config.seed, seed); random states and the model's mode are kept. Raises the errors of the
    trainer for bad data and rewards.
    """
    policy, dataset = Policy(model, tokenizer), as_prompts(dataset, "the evaluation dataset")
    functions = as_reward_functions(reward_funcs, config.reward_weights)
    check_columns(functions, dataset.column_names)
    longest = longest_prompt(tokenizer, dataset, config, "the evaluation dataset")
    check_fit(model, tokenizer, longest, config.max_completion_length)
    training = model.training
    model.eval()
    try:
        return evaluate_policy(
            policy, dataset, functions, config, num_samples, key=key, correct_reward=correct_reward, seed=seed
        )
    finally:
        model.train(training)


def evaluate_policy(
    policy: Policy,
    dataset: Dataset,
    functions: Sequence[tuple[RewardFunction, float]],
    config: PolicySplitConfig,
    num_samples: int,
    *,
    key: Key = plain_text,
    correct_reward: float = 1.0,
    seed: int = 0,
    accelerator: Accelerator | None = None,
) -> dict[str, Any]:
    """`evaluate_modes` without its checks; every process takes its share of the questions."""
    if num_samples < 1:
        raise ValueError(f"num_samples={num_samples} must be at least 1")
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    sums: Sums = {}
    for start in range(0, len(dataset), config.prompts_per_step):
        rows = range(start, min(start + config.prompts_per_step, len(dataset)))
        # a process that has run out of questions still takes part in what others wait for, and counts nothing
        mine = rows[rank::world] or rows[:1]
        questions = [dataset[row] for row in mine]
        draw = seed_of(config.seed, "evaluation", seed, mine[0])
        rollout = make_rollout(policy, questions, functions, config, num_generations=num_samples, seed=draw)
        score_rollout(policy, rollout, config)
        if rows[rank::world]:
            sums = add_sums(sums, rollout_sums(rollout) | _correctness(rollout, key, correct_reward))
        elif not sums:
            idle = rollout_sums(rollout) | _correctness(rollout, key, correct_reward)
            sums = {name: (s * 0, c * 0) for name, (s, c) in idle.items()}
    flat = means(sums, accelerator)
    measures = {
        "accuracy": "reward",
        "best_of_n": "best_of_n",
        "distinct_correct": "distinct_correct",
        "entropy": "entropy",
        "mean_length": "completions/mean_length",
    }
    result: dict[str, Any] = {
        mode: {name: flat[f"{mode}/{source}"] for name, source in measures.items()} for mode in MODE_NAMES
    }
    result |= {name: flat[f"policy_split/{name}"] for name in KL_TITLES if f"policy_split/{name}" in flat}
    return result | {"num_samples": num_samples, "num_prompts": len(dataset)}


def flatten(result: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """{"eval/normal/accuracy": ...}: one evaluation as metrics of a step."""
    flat = {}
    for name, value in result.items():
        inner = {f"{name}/{key}": v for key, v in value.items()} if isinstance(value, Mapping) else {name: value}
        flat |= {f"{prefix}/{key}": v for key, v in inner.items()}
    return flat


def format_table(before: Mapping[str, Any], after: Mapping[str, Any] | None = None) -> str:
    """One evaluation, or one before and one after training, as a markdown table."""
    results = {"before": before, "after": after} if after is not None else {"": before}
    n = "/".join(dict.fromkeys(str(result["num_samples"]) for result in results.values()))
    header = [
        "mode",
        "",
        "accuracy",
        f"best of {n}",
        f"different correct of {n}",
        "entropy (nats/token)",
        "length (tokens)",
    ]
    rows = [header, ["---"] * len(header)]
    for mode in MODE_NAMES:
        for when, result in results.items():
            m = result[mode]
            digits = (
                (m["accuracy"], 3),
                (m["best_of_n"], 3),
                (m["distinct_correct"], 2),
                (m["entropy"], 3),
                (m["mean_length"], 1),
            )
            rows.append([mode.replace("_", "-"), when, *(f"{value:.{places}f}" for value, places in digits)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    rows[1] = ["-" * width for width in widths]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    for name in KL_TITLES:
        values = ", ".join(f"{when} {result[name]:.3f}".strip() for when, result in results.items() if name in result)
        lines += ["", f"{KL_TITLES[name]}, nats/token: {values}"] if values else []
    return "\n".join(lines)


def _correctness(rollout: Rollout, key: Key, correct_reward: float) -> Sums:
    p, n = rollout.num_prompts, rollout.num_generations
    own = len(rollout.texts)
    correct = (rollout.rewards[:own] >= correct_reward).view(2, p, n)
    texts, flags = rollout.texts, correct.flatten().tolist()
    sums: Sums = {}
    for mode in MODES:
        groups = [range((mode * p + question) * n, (mode * p + question + 1) * n) for question in range(p)]
        distinct = [float(len({key(texts[i]) for i in group if flags[i]})) for group in groups]
        sums[f"{MODE_NAMES[mode]}/best_of_n"] = sum_and_count(correct[mode].any(1))
        sums[f"{MODE_NAMES[mode]}/distinct_correct"] = sum_and_count(torch.tensor(distinct, device=correct.device))
    return sums
