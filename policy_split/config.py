"""Settings of the Policy Split trainer: TRL's names where they mean the same, checked once, when they are made."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from policy_split.algorithms.table import Algorithm, find_algorithm

from .modes import HIGH_ENTROPY_PROMPT


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class PolicySplitConfig:
    """Settings of `PolicySplitTrainer`, also for HfArgumentParser; ValueError names a bad field and its value.

    There is no top_k and no top_p: filtered sampling draws from another distribution than the one whose log-probs are
    trained, and the ratio, the bonus and the KL would be those of a policy that wrote nothing. Entropies and KLs are in
    nats.
    """

    output_dir: str = _option("policy-split-run", "Folder of metrics.jsonl, checkpoints and the final model.")
    overwrite_output_dir: bool = _option(False, "Remove the metrics and checkpoints of an earlier run in output_dir.")
    seed: int = _option(
        42, "The run is a function of (seed, step); the global random state is neither read nor changed."
    )

    model_dtype: str = _option(
        "float32", "Weights of a model given by name: float32, bfloat16, float16 or auto. bfloat16 loses small updates."
    )
    attn_implementation: str | None = _option(
        None, "Attention of a model given by name: sdpa, flash_attention_2, eager."
    )
    bf16: bool = _option(False, "Compute under bfloat16 autocast.")
    fp16: bool = _option(False, "Compute under float16 autocast with loss scaling.")
    gradient_checkpointing: bool = _option(False, "Recompute activations in the backward pass: less memory, more time.")
    fused_lm_head: bool = _option(
        True,
        "Log-probs and the loss's gradients straight from the model's hidden states, chunk by chunk: the logits of a "
        "micro-batch are never in memory at once. The logits are used instead where the exact KL needs those of both "
        "modes (regularizer='loss', bonus_estimator='exact', log_exact_kl) and for heads that cannot be patched.",
    )
    lm_head_chunk_bytes: int | None = _option(
        None, "Bytes of logits in flight with fused_lm_head. Not given: 256 MiB on a CPU, 1.25 GiB on a GPU."
    )
    packed_batches: bool | None = _option(
        None,
        "Scoring and updates of sequences without padding, behind each other in one row. Not given: with flash "
        "attention, if the model keeps them apart. True: with any attention; without flash attention the mask of a "
        "micro-batch is the square of its tokens.",
    )
    use_cpu: bool = _option(False, "Stay on the CPU even where there is an accelerator.")

    max_steps: int = _option(
        -1, "Steps; one is a rollout and its updates. Above 0 it takes the place of num_train_epochs."
    )
    num_train_epochs: float = _option(1.0, "Passes over the questions.")
    prompts_per_step: int = _option(8, "Questions per step (P), over all processes.")
    num_generations: int = _option(
        8, "Responses per question AND mode (n): a question costs 2n responses, 4n rows of training."
    )
    per_device_train_batch_size: int = _option(
        8, "Rows per micro-batch: memory, not mathematics; need not divide anything."
    )
    gradient_accumulation_steps: int | None = _option(
        None, "Micro-batches per optimizer step. Not given: the whole rollout, 4*P*n rows, in one step."
    )
    per_device_generation_batch_size: int | None = _option(None, "Responses per generate call. Not given: all at once.")
    num_iterations: int = _option(1, "Passes of clipped updates over each rollout.")

    max_prompt_length: int | None = _option(
        512, "Longest prompt in tokens, system prompt included; a longer one is an error."
    )
    max_completion_length: int = _option(256, "Longest response in tokens.")
    temperature: float = _option(1.0, "Of sampling and of every log-prob. There is no top_k or top_p: see the class.")
    chat_template_kwargs: dict | str | None = field(
        default=None, metadata={"help": 'JSON for the chat template, such as {"enable_thinking": false}.'}
    )

    algorithm: str = _option(
        "policy_split",
        "policy_split, or a baseline of `algorithms.ALGORITHMS`: one policy of the normal prompt, which draws 2n "
        "responses to each question, as many as both modes would.",
    )
    algorithm_settings: dict | str | None = field(
        default=None,
        metadata={"help": "JSON of a baseline's settings, such as {\"entropy_coef\": 0.05}. Not given: its paper's."},
    )
    high_entropy_prompt: str = _option(HIGH_ENTROPY_PROMPT, "System prompt of the high-entropy mode.")
    normal_prompt: str | None = _option(None, "System prompt of the normal mode.")
    alpha: float = _option(0.5, "Share of the own mode in the bonus; 1 - alpha is the push away from the other mode.")
    eta: float = _option(0.03, "Scale of the high-entropy mode's bonus; about 0.3 with clamp='code' for small models.")
    eta_normal: float = _option(0.0, "Scale of the normal mode's own bonus, which is subtracted.")
    kappa: float | None = _option(2.0, "The bonus is clamped to |advantage| / kappa; inf: no clamp.")
    clamp: str = _option("paper", "paper: eta * clip(B, bound); code: clip(eta * B, bound), as the authors released.")
    clamp_floor: float = _option(0.0, "The bound is max(|advantage|, clamp_floor) / kappa.")
    share_correction: str = _option(
        "none", "none, or truncated: borrowed responses weigh min(1, pi_receiving / pi_writing)."
    )
    normalize: str = _option("zscore", "Of the bonus over its group: zscore, mean or none.")
    lowest_entropy_mask_ratio: float = _option(0.0, "Only tokens from this quantile of their group's bonus on get one.")
    correctness_mask: str = _option("none", "none, or all_same: a bonus only in groups whose rewards are all equal.")
    rollout_sharing: bool = _option(
        True, "False, an ablation: a mode trains on its own responses alone; borrowed ones are scored for the bonus."
    )
    bonus_estimator: str = _option(
        "sampled",
        "sampled: -log pi(o_t); entropy: the exact entropy of each distribution in its place; exact: its expectation, "
        "the own entropy and 1 - alpha times the KL to the other mode, over the whole vocabulary.",
    )
    regularizer: str = _option(
        "advantage",
        "advantage: the bonus is added to it. loss: the exact bonus is a differentiable term of the loss, of the same "
        "alpha, eta and eta_normal and the weights of the policy loss; the advantage is correctness alone. kappa, "
        "clamp, clamp_floor, normalize, lowest_entropy_mask_ratio, correctness_mask and bonus_estimator then mean "
        "nothing, share_correction is of the correctness alone, and groups of equal rewards train too.",
    )
    entropy_coef_normal: float = _option(0.0, "Weight of the differentiable entropy term, tokens of the normal mode.")
    entropy_coef_high_entropy: float = _option(0.0, "Weight of the differentiable entropy term, high-entropy mode.")

    epsilon: float = _option(0.2, "The ratio is clipped below at 1 - epsilon.")
    epsilon_high: float | None = _option(None, "The ratio is clipped above at 1 + epsilon_high. Not given: epsilon.")
    delta: float | None = _option(
        None, "Upper bound of the ratio where the advantage is negative, above 1 + epsilon_high."
    )
    beta: float = _option(0.0, "Weight of the KL to the initial model; above 0 a frozen copy of it is kept.")
    loss_type: str = _option(
        "dapo", "grpo, dapo, dr_grpo or bnpo: how tokens are weighed, see loss_weights.token_weights."
    )
    mask_truncated_completions: bool = _option(False, "Responses cut at max_completion_length do not train.")
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "One weight per reward function. Not given: 1 each."}
    )
    reward_timeout: float | None = _option(
        None, "Seconds that a reward function may take for a step's responses; the run then stops, its state saved."
    )

    learning_rate: float = _option(1e-6, "AdamW.")
    weight_decay: float = _option(0.0, "AdamW.")
    adam_beta1: float = _option(0.9, "AdamW.")
    adam_beta2: float = _option(0.999, "AdamW.")
    adam_epsilon: float = _option(1e-8, "AdamW.")
    max_grad_norm: float = _option(1.0, "The gradient is clipped to this norm.")
    lr_scheduler_type: str = _option(
        "linear", "Schedule, as transformers names it; it counts steps, not optimizer steps."
    )
    warmup_steps: int = _option(0, "Steps of linear warm-up.")
    max_skipped_steps: int = _option(
        5, "Optimizer steps skipped in a row for a non-finite gradient until the run stops."
    )

    logging_steps: int = _option(1, "Steps between reports to the trackers; metrics.jsonl has every step.")
    report_to: str = _option("none", "none, tensorboard, wandb, trackio or several of them, separated by commas.")
    log_exact_kl: bool = _option(
        False,
        "Exact KLs between the modes in metrics and evaluations, beside the sampled estimates, at a few percent of the "
        "scoring; always with regularizer='loss' or bonus_estimator='exact'. Both rows of a response are then in one "
        "micro-batch.",
    )
    log_completions: bool = _option(
        False, "Write each response with its reward to completions.jsonl every logging_steps."
    )
    sample_steps: int = _option(
        50, "Steps between samples of both modes in samples.jsonl, with the entropy of each token; 0: none."
    )
    save_steps: int = _option(500, "Steps between checkpoints; 0: none.")
    save_total_limit: int | None = _option(None, "Keep this many newest checkpoints. Not given: all.")
    eval_steps: int = _option(0, "Steps between evaluations of eval_dataset; 0: none.")
    eval_num_samples: int = _option(8, "Responses per question and mode in an evaluation.")
    disable_tqdm: bool | None = _option(
        None, "Whether to hide the progress bar. Not given: hidden where there is no terminal."
    )

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            allowed, expected = RULES.get(setting.name, (None, ""))
            if allowed and not _holds(allowed, value):
                raise ValueError(f"{setting.name}={value!r} must be {expected}")
        self.chat_template_kwargs = _parsed("chat_template_kwargs", self.chat_template_kwargs)
        self.algorithm_settings = _parsed("algorithm_settings", self.algorithm_settings)
        if self.chosen_algorithm.dual_mode and self.algorithm_settings:
            raise ValueError("algorithm_settings are those of a baseline; policy_split has fields of its own")
        if not self.chosen_algorithm.dual_mode and self.exact_kl:
            raise ValueError(
                f"algorithm={self.algorithm!r} has one mode: regularizer='loss', bonus_estimator='exact' and "
                f"log_exact_kl compare two"
            )
        if self.bf16 and self.fp16:
            raise ValueError("bf16=True and fp16=True exclude each other; choose one")
        if self.regularizer == "loss" and not self.rollout_sharing:
            raise ValueError("regularizer='loss' trains both rows of a response: rollout_sharing=False leaves one out")
        if self.delta is not None and self.delta <= 1 + self.clip_high:
            raise ValueError(f"delta={self.delta} must be above 1 + epsilon_high = {1 + self.clip_high}")
        if self.delta is not None and "loss" in self.chosen_algorithm.changes:
            raise ValueError(f"delta bounds the clipped loss; algorithm={self.algorithm!r} has a loss of its own")
        if self.high_entropy_prompt == (self.normal_prompt or ""):
            raise ValueError(
                "high_entropy_prompt and normal_prompt must differ: they are all that tells the modes apart"
            )
        if self.kappa == math.inf:
            self.kappa = None

    @property
    def chosen_algorithm(self) -> Algorithm:
        """The algorithm with its settings."""
        return find_algorithm(self.algorithm).with_settings(**(self.algorithm_settings or {}))

    @property
    def clip_high(self) -> float:
        return self.epsilon if self.epsilon_high is None else self.epsilon_high

    @property
    def bonus_options(self) -> dict[str, Any]:
        """The settings that `dual_mode_advantages` takes; no bonus where it is a term of the loss."""
        options = {name: getattr(self, name) for name in BONUS_OPTIONS}
        return options if self.regularizer == "advantage" else options | {"eta": 0.0, "eta_normal": 0.0}

    @property
    def exact_kl(self) -> bool:
        """Whether the exact KL between the modes is computed, and so both rows of a response in one micro-batch."""
        return self.log_exact_kl or self.regularizer == "loss" or self.bonus_estimator == "exact"

    @property
    def trackers(self) -> list[str]:
        return [name for name in (part.strip() for part in self.report_to.split(",")) if name not in ("", "none")]

    @property
    def system_prompts(self) -> tuple[str | None, str | None]:
        """The system prompt of each mode, in the modes' order."""
        return self.normal_prompt, self.high_entropy_prompt


def _holds(allowed: Callable[[Any], bool], value: Any) -> bool:
    try:
        return bool(allowed(value))
    except TypeError:
        return False


def _parsed(name: str, kwargs: dict | str | None) -> dict | None:
    try:
        parsed = json.loads(kwargs) if isinstance(kwargs, str) else kwargs
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}={kwargs!r} must be a JSON object: {error}") from None
    if not (parsed is None or isinstance(parsed, dict)):
        raise ValueError(f"{name}={kwargs!r} must be a JSON object, got {type(parsed).__name__}")
    return parsed


def _one_of(*names: str) -> tuple[Callable[[Any], bool], str]:
    return names.__contains__, f"one of {', '.join(map(repr, names))}"


def _or_none(rule: tuple[Callable[[Any], bool], str]) -> tuple[Callable[[Any], bool], str]:
    return lambda x: x is None or rule[0](x), f"{rule[1]}, or None"


def _integer(low: int) -> tuple[Callable[[Any], bool], str]:
    return lambda x: isinstance(x, int) and not isinstance(x, bool) and x >= low, f"an integer of at least {low}"


BOOLEAN = (lambda x: isinstance(x, bool), "True or False")
COUNT = _integer(1)
COUNT_OR_ZERO = _integer(0)
POSITIVE = (lambda x: 0 < x < math.inf, "a finite number above 0")
NOT_NEGATIVE = (lambda x: 0 <= x < math.inf, "a finite number of at least 0")
FINITE = (math.isfinite, "a finite number")
TEXT = (lambda x: isinstance(x, str) and bool(x.strip()), "a text that is not empty")
BONUS_OPTIONS = (
    "alpha",
    "eta",
    "eta_normal",
    "kappa",
    "clamp",
    "clamp_floor",
    "share_correction",
    "normalize",
    "lowest_entropy_mask_ratio",
    "correctness_mask",
    "rollout_sharing",
)
SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt")

RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "output_dir": TEXT,
    "seed": COUNT_OR_ZERO,
    "model_dtype": _one_of("float32", "bfloat16", "float16", "auto"),
    "fused_lm_head": BOOLEAN,
    "lm_head_chunk_bytes": _or_none(COUNT),
    "max_steps": (lambda x: x == -1 or COUNT[0](x), "an integer of at least 1, or -1 for num_train_epochs"),
    "packed_batches": _or_none(BOOLEAN),
    "num_train_epochs": POSITIVE,
    "prompts_per_step": COUNT,
    "num_generations": COUNT,
    "per_device_train_batch_size": COUNT,
    "gradient_accumulation_steps": _or_none(COUNT),
    "per_device_generation_batch_size": _or_none(COUNT),
    "num_iterations": COUNT,
    "max_prompt_length": _or_none(COUNT),
    "max_completion_length": COUNT,
    "temperature": POSITIVE,
    "high_entropy_prompt": TEXT,
    "alpha": (lambda x: 0 <= x <= 1, "between 0 and 1"),
    "eta": NOT_NEGATIVE,
    "eta_normal": FINITE,
    "kappa": (lambda x: x is None or x > 0, "above 0; inf or None for no clamp"),
    "clamp": _one_of("paper", "code"),
    "clamp_floor": NOT_NEGATIVE,
    "share_correction": _one_of("none", "truncated"),
    "normalize": _one_of("zscore", "mean", "none"),
    "lowest_entropy_mask_ratio": (lambda x: 0 <= x < 1, "at least 0 and below 1"),
    "correctness_mask": _one_of("none", "all_same"),
    "rollout_sharing": BOOLEAN,
    "bonus_estimator": _one_of("sampled", "entropy", "exact"),
    "regularizer": _one_of("advantage", "loss"),
    "log_exact_kl": BOOLEAN,
    "entropy_coef_normal": FINITE,
    "entropy_coef_high_entropy": FINITE,
    "epsilon": (lambda x: 0 <= x <= 1, "between 0 and 1: the ratio is clipped to [1 - epsilon, 1 + epsilon_high]"),
    "epsilon_high": _or_none(NOT_NEGATIVE),
    "beta": NOT_NEGATIVE,
    "loss_type": _one_of("grpo", "dapo", "dr_grpo", "bnpo"),
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
    "sample_steps": COUNT_OR_ZERO,
    "save_steps": COUNT_OR_ZERO,
    "save_total_limit": _or_none(COUNT),
    "eval_steps": COUNT_OR_ZERO,
    "eval_num_samples": COUNT,
}
