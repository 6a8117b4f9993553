"""What each setting may be by itself; ValueError names the setting, its value and what would be right."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from policy_split.algorithms.share_correction import FORMS
from policy_split.messages import PLACES

if TYPE_CHECKING:
    from .fields import PolicySplitConfig

Rule = tuple[Callable[[Any], bool], str]


def check_each(config: "PolicySplitConfig") -> None:
    for setting in fields(config):
        value = getattr(config, setting.name)
        allowed, expected = RULES.get(setting.name, (None, ""))
        if allowed and not _holds(allowed, value):
            raise ValueError(f"{setting.name}={value!r} must be {expected}")


def parsed_object(name: str, text: dict[str, Any] | str | None) -> dict[str, Any] | None:
    try:
        parsed = json.loads(text) if isinstance(text, str) else text
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}={text!r} must be a JSON object: {error}") from None
    if not (parsed is None or isinstance(parsed, dict)):
        raise ValueError(f"{name}={text!r} must be a JSON object, got {type(parsed).__name__}")
    return parsed


def _holds(allowed: Callable[[Any], bool], value: Any) -> bool:
    try:
        return bool(allowed(value))
    except TypeError:
        return False


def _one_of(*names: str) -> Rule:
    return names.__contains__, f"one of {', '.join(map(repr, names))}"


def _or_none(rule: Rule) -> Rule:
    return lambda x: x is None or rule[0](x), f"{rule[1]}, or None"


def _integer(low: int) -> Rule:
    return lambda x: isinstance(x, int) and not isinstance(x, bool) and x >= low, f"an integer of at least {low}"


BOOLEAN = (lambda x: isinstance(x, bool), "True or False")
COUNT = _integer(1)
COUNT_OR_ZERO = _integer(0)
POSITIVE = (lambda x: 0 < x < math.inf, "a finite number above 0")
NOT_NEGATIVE = (lambda x: 0 <= x < math.inf, "a finite number of at least 0")
FINITE = (math.isfinite, "a finite number")
TEXT = (lambda x: isinstance(x, str) and bool(x.strip()), "a text that is not empty")
NAMES = (
    lambda x: isinstance(x, (list, tuple)) and bool(x) and all(TEXT[0](name) for name in x),
    "a list of names that is not empty",
)
REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")
SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt")

RULES: dict[str, Rule] = {
    "output_dir": TEXT,
    "seed": COUNT_OR_ZERO,
    "model_dtype": _one_of("float32", "bfloat16", "float16", "auto"),
    "fused_lm_head": BOOLEAN,
    "num_threads": _or_none(COUNT),
    "lm_head_chunk_bytes": _or_none(COUNT),
    "use_peft": BOOLEAN,
    "lora_r": COUNT,
    "lora_alpha": COUNT,
    "lora_dropout": (lambda x: 0 <= x < 1, "at least 0 and below 1"),
    "lora_target_modules": _or_none(NAMES),
    "lora_modules_to_save": _or_none(NAMES),
    "use_rslora": BOOLEAN,
    "use_dora": BOOLEAN,
    "merge_adapter": BOOLEAN,
    "max_steps": (lambda x: x == -1 or COUNT[0](x), "an integer of at least 1, or -1 for num_train_epochs"),
    "packed_batches": _or_none(BOOLEAN),
    "share_prompts": _or_none(BOOLEAN),
    "num_train_epochs": POSITIVE,
    "prompts_per_step": COUNT,
    "num_generations": COUNT,
    "split_by_need": BOOLEAN,
    "per_device_train_batch_size": COUNT,
    "gradient_accumulation_steps": _or_none(COUNT),
    "per_device_generation_batch_size": _or_none(COUNT),
    "rollout_engine": _one_of("transformers", "vllm"),
    "vllm_gpu_memory_utilization": (lambda x: 0 < x <= 1, "above 0 and at most 1"),
    "vllm_max_model_length": _or_none(COUNT),
    "vllm_enable_sleep_mode": BOOLEAN,
    "vllm_model_impl": _one_of("auto", "vllm", "transformers"),
    "vllm_importance_sampling_correction": BOOLEAN,
    "vllm_importance_sampling_clip_max": POSITIVE,
    "num_iterations": COUNT,
    "max_prompt_length": _or_none(COUNT),
    "max_completion_length": COUNT,
    "temperature": POSITIVE,
    "high_entropy_prompt": TEXT,
    "high_entropy_place": _one_of(*PLACES),
    "alpha": (lambda x: 0 <= x <= 1, "between 0 and 1"),
    "eta": NOT_NEGATIVE,
    "eta_normal": FINITE,
    "kappa": (lambda x: x is None or x > 0, "above 0; inf or None for no clamp"),
    "clamp": _one_of("paper", "code"),
    "clamp_floor": NOT_NEGATIVE,
    "share_correction": _one_of(*FORMS),
    "share_gamma": POSITIVE,
    "target_kl": _or_none(POSITIVE),
    "fresh_questions": BOOLEAN,
    "normalize": _one_of("zscore", "mean", "none"),
    "lowest_entropy_mask_ratio": (lambda x: 0 <= x < 1, "at least 0 and below 1"),
    "correctness_mask": _one_of("none", "all_same"),
    "rollout_sharing": BOOLEAN,
    "bonus_estimator": _one_of("sampled", "entropy", "exact"),
    "score_with_update": _one_of("auto", "on", "off"),
    "log_all_entropies": BOOLEAN,
    "regularizer": _one_of("advantage", "loss"),
    "log_exact_kl": BOOLEAN,
    "entropy_coef_normal": FINITE,
    "entropy_coef_high_entropy": FINITE,
    "epsilon": (lambda x: 0 <= x <= 1, "between 0 and 1: the ratio is clipped to [1 - epsilon, 1 + epsilon_high]"),
    "epsilon_high": _or_none(NOT_NEGATIVE),
    "beta": NOT_NEGATIVE,
    "loss_type": _one_of("grpo", "dapo", "dr_grpo", "bnpo"),
    "skip_special_tokens": BOOLEAN,
    "reward_weights": (lambda x: x is None or all(map(math.isfinite, x)), "finite numbers, one per reward function"),
    "reward_timeout": _or_none(POSITIVE),
    "learning_rate": NOT_NEGATIVE,
    "weight_decay": NOT_NEGATIVE,
    "adam_beta1": (lambda x: 0 <= x < 1, "at least 0 and below 1"),
    "adam_beta2": (lambda x: 0 <= x < 1, "at least 0 and below 1"),
    "adam_epsilon": POSITIVE,
    "max_grad_norm": POSITIVE,
    "lr_scheduler_type": _one_of(*SCHEDULES),
    "warmup_steps": COUNT_OR_ZERO,
    "max_skipped_steps": COUNT_OR_ZERO,
    "logging_steps": COUNT,
    "report_to": (lambda x: isinstance(x, str), "a text: tracker names separated by commas, or 'none'"),
    "push_to_hub": BOOLEAN,
    "hub_model_id": _or_none((lambda x: REPOSITORY.fullmatch(x) is not None, "NAME or OWNER/NAME of a repository")),
    "hub_private_repo": _or_none(BOOLEAN),
    "sample_steps": COUNT_OR_ZERO,
    "save_steps": COUNT_OR_ZERO,
    "save_total_limit": _or_none(COUNT),
    "eval_steps": COUNT_OR_ZERO,
    "eval_num_samples": COUNT,
}
