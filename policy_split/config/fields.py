"""The settings, each with its default and its help; TRL's names where they mean the same."""

import math
from dataclasses import dataclass, fields
from typing import Any

from policy_split.algorithms.advantage_input import OPTIONS
from policy_split.algorithms.table import Algorithm, find_algorithm
from policy_split.modes import HIGH_ENTROPY_PROMPT

from .combinations import check_together, scored_apart_because
from .option import fixed, free, product
from .rules import check_each, parsed_object

BONUS_OPTIONS = tuple(name for name in OPTIONS if name not in ("num_prompts", "num_generations"))


@dataclass
class PolicySplitConfig:
    """Settings of `PolicySplitTrainer`, also for HfArgumentParser; ValueError names a bad field and its value.

    There is no top_k and no top_p: filtered sampling draws from another distribution than the one whose log-probs are
    trained, and the ratio, the bonus and the KL would be those of a policy that wrote nothing. Entropies and KLs are in
    nats.
    """

    output_dir: str = free("policy-split-run", "Folder of metrics.jsonl, checkpoints and the final model.")
    overwrite_output_dir: bool = free(False, "Remove the metrics and checkpoints of an earlier run in output_dir.")
    seed: int = fixed(42, "The run is a function of (seed, step); the global random state is neither read nor changed.")

    model_dtype: str = fixed(
        "float32", "Weights of a model given by name: float32, bfloat16, float16 or auto. bfloat16 loses small updates."
    )
    attn_implementation: str | None = free(None, "Attention of a model given by name: sdpa, flash_attention_2, eager.")
    bf16: bool = free(False, "Compute under bfloat16 autocast.")
    fp16: bool = free(False, "Compute under float16 autocast with loss scaling.")
    gradient_checkpointing: bool = free(False, "Recompute activations in the backward pass: less memory, more time.")
    fused_lm_head: bool = free(
        True,
        "Log-probs and the loss's gradients straight from the model's hidden states, chunk by chunk: the logits of a "
        "micro-batch are never in memory at once. The logits are used instead where the exact KL needs those of both "
        "modes (regularizer='loss', bonus_estimator='exact', log_exact_kl) and for heads that cannot be patched.",
    )
    lm_head_chunk_bytes: int | None = free(
        None, "Bytes of logits in flight with fused_lm_head. Not given: 256 MiB on a CPU, 1.25 GiB on a GPU."
    )
    packed_batches: bool | None = free(
        None,
        "Scoring and updates of sequences without padding, behind each other in one row. Not given: with flash "
        "attention, if the model keeps them apart. True: with any attention; without flash attention the mask of a "
        "micro-batch is the square of its tokens.",
    )
    share_prompts: bool | None = free(
        None,
        "Rows of one question and mode stand behind one copy of their prompt, whose forward and backward are then paid "
        "once for all of its responses. Not given: where the model can, which is measured before the first step (with "
        "sdpa attention; packed_batches excludes it).",
    )
    score_with_update: str = free(
        "auto",
        "on: a rollout's first update scores its own rows in the forward that trains them, a micro-batch of whole "
        "questions at a time; off: all is scored before. auto: on where a question's rows (4n of Policy Split) fit "
        "into per_device_train_batch_size or gradient_checkpointing keeps activations small; the metrics say which.",
    )
    use_cpu: bool = free(False, "Stay on the CPU even where there is an accelerator.")
    num_threads: int | None = free(
        None,
        "Threads of the CPU. Not given: OMP_NUM_THREADS; without it PyTorch's number, or in `policy-split train` the "
        "fastest in a short measurement, which is kept with the run. Another number rounds sums otherwise.",
    )

    use_peft: bool = fixed(False, "Train a LoRA adapter by the package peft; the model itself stays as it is.")
    lora_r: int = fixed(16, "Rank of the adapter.")
    lora_alpha: int = fixed(32, "The adapter is scaled by lora_alpha / lora_r.")
    lora_dropout: float = fixed(
        0.0, "Dropout of the adapter in updates; above 0 the first ratio is not exactly 1 any more."
    )
    lora_target_modules: list[str] | None = fixed(
        None, "Names of modules with an adapter, all-linear, or one regular expression. Not given: peft's of the model."
    )
    lora_modules_to_save: list[str] | None = fixed(None, "Names of modules that train as a whole beside the adapter.")
    use_rslora: bool = fixed(False, "Scale by lora_alpha / sqrt(lora_r).")
    use_dora: bool = fixed(False, "Weight-decomposed adapters (DoRA).")
    merge_adapter: bool = free(
        False, "The final model is a whole one, the adapter merged; checkpoints hold the adapter."
    )

    max_steps: int = free(
        -1, "Steps; one is a rollout and its updates. Above 0 it takes the place of num_train_epochs."
    )
    num_train_epochs: float = free(1.0, "Passes over the questions.")
    fresh_questions: bool = fixed(
        False,
        "No question comes again before every different one has come; rows of one prompt are one question. The "
        "built-in task then makes different problems only, the order of their numbers aside.",
    )
    prompts_per_step: int = fixed(8, "Questions per step (P), over all processes.")
    num_generations: int = fixed(
        8, "Responses per question AND mode (n): a question costs 2n responses, 4n rows of training."
    )
    split_by_need: bool = fixed(False, "The high-entropy mode writes more where the normal mode's rewards are equal.")
    per_device_train_batch_size: int = product(
        8, "Rows per micro-batch: memory, not mathematics; need not divide anything."
    )
    gradient_accumulation_steps: int | None = product(
        None, "Micro-batches per optimizer step. Not given: the whole rollout, 4*P*n rows, in one step."
    )
    per_device_generation_batch_size: int | None = free(
        None, "Responses that are generated at once. Not given: all of them, or as many as vLLM's own default."
    )
    rollout_engine: str = free(
        "transformers", "What draws responses: transformers (generate), or vllm in this process; seeds are its own."
    )
    vllm_gpu_memory_utilization: float = free(0.3, "Share of the GPU's memory (without a GPU, of the machine's).")
    vllm_max_model_length: int | None = free(
        None, "Tokens of a prompt and its response. Not given: the longest prompt and max_completion_length."
    )
    vllm_enable_sleep_mode: bool = free(False, "vLLM gives its memory back during the updates; on GPUs.")
    vllm_model_impl: str = free("auto", "Whose model code vLLM runs: vllm, transformers, or auto.")
    vllm_importance_sampling_correction: bool = fixed(
        False, "Advantages of a token weigh min(vllm_importance_sampling_clip_max, pi / pi of the engine that drew it)."
    )
    vllm_importance_sampling_clip_max: float = fixed(3.0, "Bound of these weights.")
    num_iterations: int = fixed(1, "Passes of clipped updates over each rollout.")

    max_prompt_length: int | None = free(
        512, "Longest prompt in tokens, system prompt included; a longer one is an error."
    )
    max_completion_length: int = fixed(256, "Longest response in tokens.")
    temperature: float = fixed(1.0, "Of sampling and of every log-prob. There is no top_k or top_p: see the class.")
    chat_template_kwargs: dict[str, Any] | str | None = fixed(
        None, 'JSON for the chat template, such as {"enable_thinking": false}.'
    )

    algorithm: str = fixed(
        "policy_split",
        "policy_split, or a baseline of the table of algorithms: one policy of the normal prompt, which draws 2n "
        "responses to each question, as many as both modes would.",
    )
    algorithm_settings: dict[str, Any] | str | None = fixed(
        None, "JSON of a baseline's settings, such as {\"entropy_coef\": 0.05}. Not given: its paper's."
    )
    high_entropy_prompt: str = fixed(HIGH_ENTROPY_PROMPT, "System prompt of the high-entropy mode.")
    normal_prompt: str | None = fixed(None, "System prompt of the normal mode.")
    high_entropy_place: str = fixed(
        "system",
        "Where both prompts stand: system, in the system message; user, in front of the user's first message, for chat "
        "templates that refuse or drop a system message.",
    )
    alpha: float = fixed(0.5, "Share of the own mode in the bonus; 1 - alpha is the push away from the other mode.")
    eta: float = fixed(0.03, "Scale of the high-entropy mode's bonus; about 0.3 with clamp='code' for small models.")
    eta_normal: float = fixed(0.0, "Scale of the normal mode's own bonus, which is subtracted.")
    kappa: float | None = fixed(2.0, "The bonus is clamped to |advantage| / kappa; inf: no clamp.")
    clamp: str = fixed("paper", "paper: eta * clip(B, bound); code: clip(eta * B, bound), as the authors released.")
    clamp_floor: float = fixed(0.0, "The bound is max(|advantage|, clamp_floor) / kappa.")
    target_kl: float | None = fixed(
        None,
        "KL(high-entropy || normal) in nats per token, 0.2 in the paper, at which a controller holds the modes by "
        "moving eta, which is then its start. Not given: eta stays.",
    )
    share_correction: str = fixed(
        "none",
        "What a token of a borrowed response weighs, of x = pi_receiving / pi_writing: none: 1; truncated: min(1, x); "
        "positive: 1 if the response has a positive advantage, else min(1, x); shaped: x / (x + share_gamma).",
    )
    share_gamma: float = fixed(0.1, "The gamma of share_correction='shaped'.")
    normalize: str = fixed("zscore", "Of the bonus over its group: zscore, mean or none.")
    lowest_entropy_mask_ratio: float = fixed(0.0, "Only tokens from this quantile of their group's bonus on get one.")
    correctness_mask: str = fixed("none", "none, or all_same: a bonus only in groups whose rewards are all equal.")
    rollout_sharing: bool = fixed(
        True, "False, an ablation: a mode trains on its own responses alone; borrowed ones are scored for the bonus."
    )
    bonus_estimator: str = fixed(
        "sampled",
        "sampled: -log pi(o_t); entropy: the exact entropy of each distribution in its place; exact: its expectation, "
        "the own entropy and 1 - alpha times the KL to the other mode, over the whole vocabulary.",
    )
    regularizer: str = fixed(
        "advantage",
        "advantage: the bonus is added to it. loss: the exact bonus is a differentiable term of the loss, of the same "
        "alpha, eta and eta_normal and the weights of the policy loss; the advantage is correctness alone. kappa, "
        "clamp, clamp_floor, normalize, lowest_entropy_mask_ratio, correctness_mask and bonus_estimator then mean "
        "nothing, share_correction is of the correctness alone, and groups of equal rewards train too.",
    )
    entropy_coef_normal: float = fixed(0.0, "Weight of the differentiable entropy term, tokens of the normal mode.")
    entropy_coef_high_entropy: float = fixed(0.0, "Weight of the differentiable entropy term, high-entropy mode.")

    epsilon: float = fixed(0.2, "The ratio is clipped below at 1 - epsilon.")
    epsilon_high: float | None = fixed(None, "The ratio is clipped above at 1 + epsilon_high. Not given: epsilon.")
    delta: float | None = fixed(
        None, "Upper bound of the ratio where the advantage is negative, above 1 + epsilon_high."
    )
    beta: float = fixed(0.0, "Weight of the KL to the initial model; above 0 a frozen copy of it is kept.")
    loss_type: str = fixed("dapo", "grpo, dapo, dr_grpo or bnpo: how tokens are weighed, see token_weights.")
    mask_truncated_completions: bool = fixed(False, "Responses cut at max_completion_length do not train.")
    skip_special_tokens: bool = fixed(
        True, "Rewards read responses without special tokens; False keeps them, the end of sequence among them."
    )
    reward_weights: list[float] | None = fixed(None, "One weight per reward function. Not given: 1 each.")
    reward_timeout: float | None = free(
        None, "Seconds that a reward function may take for a step's responses; the run then stops, its state saved."
    )

    learning_rate: float = free(1e-6, "AdamW.")
    weight_decay: float = free(0.0, "AdamW.")
    adam_beta1: float = free(0.9, "AdamW.")
    adam_beta2: float = free(0.999, "AdamW.")
    adam_epsilon: float = free(1e-8, "AdamW.")
    max_grad_norm: float = free(1.0, "The gradient is clipped to this norm.")
    lr_scheduler_type: str = free("linear", "Schedule, as transformers names it; it counts steps, not optimizer steps.")
    warmup_steps: int = free(0, "Steps of linear warm-up.")
    max_skipped_steps: int = free(5, "Optimizer steps skipped in a row for a non-finite gradient until the run stops.")

    logging_steps: int = free(1, "Steps between reports to the trackers; metrics.jsonl has every step.")
    report_to: str = free("none", "none, tensorboard, wandb, trackio or several of them, separated by commas.")
    log_exact_kl: bool = free(
        False,
        "Exact KLs between the modes in metrics and evaluations, beside the sampled estimates, at a few percent of the "
        "scoring; always with regularizer='loss' or bonus_estimator='exact'. Both rows of a response are then in one "
        "micro-batch.",
    )
    log_all_entropies: bool = free(
        False,
        "Score every response for the metrics. Otherwise questions without a gradient, whose rewards are all equal, "
        "are not scored but for a few that stand for them: entropies and KLs are then unbiased estimates.",
    )
    log_completions: bool = free(False, "Write each response with its reward to completions.jsonl every logging_steps.")
    sample_steps: int = free(
        50, "Steps between samples of both modes in samples.jsonl, with the entropy of each token; 0: none."
    )
    save_steps: int = free(500, "Steps between checkpoints; 0: none.")
    save_total_limit: int | None = free(None, "Keep this many newest checkpoints. Not given: all.")
    eval_steps: int = free(0, "Steps between evaluations of eval_dataset; 0: none.")
    eval_num_samples: int = free(8, "Responses per question and mode in an evaluation.")
    push_to_hub: bool = free(
        False,
        "Push the model with its card to the Hugging Face Hub at the end, logged in by hf auth login or HF_TOKEN: "
        "checked before the first step.",
    )
    hub_model_id: str | None = free(None, "Repository, NAME or OWNER/NAME. Not given: the name of output_dir.")
    hub_private_repo: bool | None = free(
        None, "Whether a repository that is made is private. Not given: what is usual for its owner."
    )
    disable_tqdm: bool | None = free(
        None, "Whether to hide the progress bar. Not given: hidden where there is no terminal."
    )

    def __post_init__(self) -> None:
        check_each(self)
        self.chat_template_kwargs = parsed_object("chat_template_kwargs", self.chat_template_kwargs)
        self.algorithm_settings = parsed_object("algorithm_settings", self.algorithm_settings)
        check_together(self)
        if self.kappa == math.inf:
            self.kappa = None

    @property
    def chosen_algorithm(self) -> Algorithm:
        """The algorithm with its settings."""
        settings = parsed_object("algorithm_settings", self.algorithm_settings) or {}
        return find_algorithm(self.algorithm).with_settings(**settings)

    @property
    def template_kwargs(self) -> dict[str, Any] | None:
        return parsed_object("chat_template_kwargs", self.chat_template_kwargs)

    @classmethod
    def resumption(cls) -> dict[str, str]:
        """What a resumed run may do to each setting: free, fixed or product, see above."""
        return {setting.name: setting.metadata["help"].resume for setting in fields(cls)}

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
    def scored_apart_because(self) -> str | None:
        """Why a rollout is scored before its first update, or None: then that update can score its own rows."""
        return scored_apart_because(self)

    @property
    def trackers(self) -> list[str]:
        return [name for name in (part.strip() for part in self.report_to.split(",")) if name not in ("", "none")]

    @property
    def system_prompts(self) -> tuple[str | None, str | None]:
        """The system prompt of each mode, in the modes' order."""
        return self.normal_prompt, self.high_entropy_prompt
