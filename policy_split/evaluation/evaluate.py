"""How good and how different the answers of both modes are, on questions that were not trained on."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm
from transformers import PreTrainedModel, TrainerState

from policy_split.config import PolicySplitConfig
from policy_split.data.datasets import Data, as_prompts, longest_prompt
from policy_split.data.rows import Questions, rows_at
from policy_split.models.policy import Policy, check_fit
from policy_split.modes import MODE_NAMES, MODES
from policy_split.rewards.functions import as_reward_functions, check_columns
from policy_split.rewards.loading import RewardFunction
from policy_split.rollouts.engine import RolloutEngine
from policy_split.rollouts.metrics import Sums, add_sums, means, rollout_sums, sum_and_count
from policy_split.rollouts.rollout import Rollout, make_rollout, score_rollout
from policy_split.rollouts.sampling import seed_of

from .comparison import summarize
from .judge import Judge
from .question_scores import Key, correct_answers, question_scores
from .tables import markdown

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
    dataset: Data,
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
    policy, dataset, functions = _checked(model, tokenizer, dataset, reward_funcs, config)
    training = model.training
    model.eval()
    try:
        return evaluate_policy(
            policy, dataset, functions, config, num_samples, key=key, correct_reward=correct_reward, seed=seed
        )
    finally:
        model.train(training)


def evaluate_in_detail(
    model: PreTrainedModel,
    tokenizer: Any,
    dataset: Data,
    reward_funcs: Any,
    config: PolicySplitConfig,
    num_samples: int = 64,
    *,
    key: Key = plain_text,
    correct_reward: float = 1.0,
    seed: int = 0,
    judge: Judge | None = None,
) -> dict[str, Any]:
    """Both modes as `evaluate_modes` samples them, with pass@k, diversity, intervals and the numbers of each question.

    Returns, ready for JSON, {"num_questions", "num_samples", "correct_reward", "modes": {"normal": m, "high_entropy":
    m}, "kl_high_normal", "kl_normal_high", "questions": [prompt], "per_question": {name: [number]}}. m has `pass_at_k`
    = {"1": s, "2": s, "4": s, ...}, unbiased, up to num_samples and 64, and `accuracy`, `distinct_correct`,
    `distinct_correct_8`, `entropy`, `mean_length`, `truncated`, `distinct_1` to `distinct_3`, `div_ngram_8` and
    `div_bleu_8`, as `question_scores` measures them; the KLs are exact. s: {"mean", "low", "high"}, mean over the
    questions and 95 % bootstrap interval.
    judge: adds `judge_creativity`, `judge_originality` and `judge_imagery`, see `Judge`.
    Every question has the same weight, whereas `evaluate_modes` gives it to every token: entropies and KLs of both
    differ by that. Two results on the same questions are what `compare` takes. One process. Raises what
    `evaluate_modes` raises.
    """
    # both prompts are asked, whatever algorithm has trained the model
    config = replace(config, algorithm="policy_split", algorithm_settings=None, log_exact_kl=True)
    policy, dataset, functions = _checked(model, tokenizer, dataset, reward_funcs, config)
    training, parts, asked = model.training, [], list(dataset["prompt"])
    model.eval()
    try:
        for _, rollout in _rollouts(policy, dataset, functions, config, num_samples, seed):
            _check_graded(rollout)
            parts.append(question_scores(rollout, policy.end_ids, key, correct_reward))
            if judge is not None:
                parts[-1] |= judge.question_scores(asked[: rollout.num_prompts], rollout.texts)
                del asked[: rollout.num_prompts]
    finally:
        model.train(training)
    scores = {name: torch.cat([part[name] for part in parts]).tolist() for name in parts[0]}
    counts = {"num_questions": len(dataset), "num_samples": num_samples, "correct_reward": correct_reward}
    questions = json.loads(json.dumps(list(dataset["prompt"]), default=str))  # as they will be read
    details = {"questions": questions, "per_question": scores}
    return counts | summarize(scores, num_samples, seed=seed) | details


def evaluate_policy(
    policy: Policy,
    dataset: Questions,
    functions: Sequence[tuple[RewardFunction, float]],
    config: PolicySplitConfig,
    num_samples: int,
    *,
    key: Key = plain_text,
    correct_reward: float = 1.0,
    seed: int = 0,
    accelerator: Accelerator | None = None,
    state: TrainerState | None = None,
    engine: RolloutEngine | None = None,
) -> dict[str, Any]:
    """`evaluate_modes` without its checks; every process takes its share of the questions.

    state: the trainer_state of reward functions. engine: what draws, with the policy's weights; None: the policy.
    """
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    sums: Sums = {}
    shares = (rank, world, state, engine)
    for counts, rollout in _rollouts(policy, dataset, functions, config, num_samples, seed, *shares):
        own = rollout_sums(rollout) | _correctness(rollout, key, correct_reward)
        if counts:
            sums = add_sums(sums, own)
        elif not sums:
            sums = {name: (s * 0, c * 0) for name, (s, c) in own.items()}
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
    flat: dict[str, float] = {}
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
    rows = [header]
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
    lines = [markdown(rows)]
    for name in KL_TITLES:
        values = ", ".join(f"{when} {result[name]:.3f}".strip() for when, result in results.items() if name in result)
        lines += ["", f"{KL_TITLES[name]}, nats/token: {values}"] if values else []
    return "\n".join(lines)


def _checked(
    model: PreTrainedModel, tokenizer: Any, dataset: Any, reward_funcs: Any, config: PolicySplitConfig
) -> tuple[Policy, Questions, list[tuple[RewardFunction, float]]]:
    policy = Policy(model, tokenizer, share=bool(config.share_prompts))
    dataset = as_prompts(dataset, "the evaluation dataset", held_out=True)
    policy.check_padding()
    functions = as_reward_functions(reward_funcs, config.reward_weights, config.reward_timeout)
    check_columns(functions, dataset.column_names)
    longest = longest_prompt(tokenizer, dataset, config, "the evaluation dataset")
    check_fit(model, tokenizer, longest, config.max_completion_length)
    return policy, dataset, functions


def _rollouts(
    policy: Policy,
    dataset: Questions,
    functions: Sequence[tuple[RewardFunction, float]],
    config: PolicySplitConfig,
    num_samples: int,
    seed: int,
    rank: int = 0,
    world: int = 1,
    state: TrainerState | None = None,
    engine: RolloutEngine | None = None,
) -> Iterator[tuple[bool, Rollout]]:
    """Scored rollouts of this process's questions, config.prompts_per_step at a time, and whether each counts."""
    if num_samples < 1:
        raise ValueError(f"num_samples={num_samples} must be at least 1")
    starts = range(0, len(dataset), config.prompts_per_step)
    bar = tqdm(starts, desc="evaluation", leave=False, disable=config.disable_tqdm if rank == 0 else True)
    for start in bar:
        rows = range(start, min(start + config.prompts_per_step, len(dataset)))
        # a process that has run out of questions still takes part in what others wait for, and counts nothing
        mine = rows[rank::world] or rows[:1]
        questions = rows_at(dataset, mine)
        draw = seed_of(config.seed, "evaluation", seed, mine[0])
        arguments = (policy, questions, functions, config)
        rollout = make_rollout(*arguments, num_generations=num_samples, seed=draw, state=state, engine=engine)
        score_rollout(policy, rollout, config)
        if not bar.disable:
            latest = means(rollout_sums(rollout))
            shown = [f"{mode}/{name}" for mode in MODE_NAMES for name in ("reward", "entropy")]
            bar.set_postfix({name: f"{latest[name]:.3f}" for name in shown})
        yield bool(rows[rank::world]), rollout


def _check_graded(rollout: Rollout) -> None:
    """ValueError for a response without a reward: pass@k and its intervals are of num_samples responses each."""
    missing = [row for row in range(len(rollout.texts)) if rollout.reward(row) is None]
    if missing:
        raise ValueError(
            f"sample {missing[0]} ({rollout.texts[missing[0]]!r}) has no reward, every function returned None for it: "
            f"an evaluation in detail counts the correct ones among all responses; return a number"
        )


def _correctness(rollout: Rollout, key: Key, correct_reward: float) -> Sums:
    correct, answers = correct_answers(rollout, key, correct_reward)
    distinct = torch.tensor([len(each) for each in answers], device=correct.device).view(2, -1)
    sums: Sums = {}
    for mode in MODES:
        sums[f"{MODE_NAMES[mode]}/best_of_n"] = sum_and_count(correct[mode].any(1))
        sums[f"{MODE_NAMES[mode]}/distinct_correct"] = sum_and_count(distinct[mode])
    return sums
