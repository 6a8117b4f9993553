"""Which settings exclude each other or ask for each other."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .fields import PolicySplitConfig


# with their defaults
ADAPTER = {"lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "lora_target_modules": None}
ADAPTER |= {"lora_modules_to_save": None, "use_rslora": False, "use_dora": False}
VLLM: dict[str, Any] = {
    "vllm_gpu_memory_utilization": 0.3,
    "vllm_max_model_length": None,
    "vllm_enable_sleep_mode": False,
}
VLLM |= {"vllm_model_impl": "auto", "vllm_importance_sampling_correction": False}
VLLM |= {"vllm_importance_sampling_clip_max": 3.0}


def check_together(config: "PolicySplitConfig") -> None:
    """ValueError where settings that are right by themselves contradict each other."""
    if config.chosen_algorithm.dual_mode and config.algorithm_settings:
        raise ValueError("algorithm_settings are those of a baseline; policy_split has fields of its own")
    if not config.chosen_algorithm.dual_mode and config.exact_kl:
        raise ValueError(
            f"algorithm={config.algorithm!r} has one mode: regularizer='loss', bonus_estimator='exact' and "
            f"log_exact_kl compare two"
        )
    if config.target_kl is not None and not config.chosen_algorithm.dual_mode:
        raise ValueError(f"target_kl={config.target_kl} is of two modes; algorithm={config.algorithm!r} has one")
    if config.target_kl is not None and config.eta == 0:
        raise ValueError(f"target_kl={config.target_kl} multiplies eta, and nothing comes of eta=0: give its start")
    if config.split_by_need and not (config.chosen_algorithm.dual_mode and config.rollout_sharing):
        reason = f"algorithm={config.algorithm!r}, rollout_sharing={config.rollout_sharing}"
        raise ValueError(f"split_by_need=True is of two modes that share their responses, not of {reason}")
    if config.share_prompts and config.packed_batches:
        raise ValueError("share_prompts=True and packed_batches=True are two layouts of one batch; choose one")
    if config.score_with_update == "on" and config.scored_apart_because:
        raise ValueError(f"score_with_update='on': {config.scored_apart_because}; use 'auto'")
    if config.bf16 and config.fp16:
        raise ValueError("bf16=True and fp16=True exclude each other; choose one")
    if config.regularizer == "loss" and not config.rollout_sharing:
        raise ValueError("regularizer='loss' trains both rows of a response: rollout_sharing=False leaves one out")
    if config.delta is not None and config.delta <= 1 + config.clip_high:
        raise ValueError(f"delta={config.delta} must be above 1 + epsilon_high = {1 + config.clip_high}")
    if config.delta is not None and "loss" in config.chosen_algorithm.changes:
        raise ValueError(f"delta bounds the clipped loss; algorithm={config.algorithm!r} has a loss of its own")
    if config.high_entropy_prompt == (config.normal_prompt or ""):
        raise ValueError("high_entropy_prompt and normal_prompt must differ: they are all that tells the modes apart")
    _check_meaningful(config, ADAPTER, config.use_peft, "an adapter that use_peft=True makes; without it there is none")
    used = config.rollout_engine == "vllm"
    _check_meaningful(config, VLLM, used, "rollout_engine='vllm'; transformers generates without it")
    if config.vllm_importance_sampling_clip_max != 3.0 and not config.vllm_importance_sampling_correction:
        raise ValueError(
            f"vllm_importance_sampling_clip_max={config.vllm_importance_sampling_clip_max} bounds weights that there "
            f"are with vllm_importance_sampling_correction=True alone"
        )


def _check_meaningful(config: "PolicySplitConfig", defaults: dict[str, Any], used: bool, of: str) -> None:
    """ValueError for settings of something that is not used."""
    given = [f"{name}={getattr(config, name)!r}" for name in defaults if getattr(config, name) != defaults[name]]
    if given and not used:
        raise ValueError(f"{', '.join(given)} is of {of}")


def scored_apart_because(config: "PolicySplitConfig") -> str | None:
    """Why a rollout must be scored before its first update, or None."""
    if config.lora_dropout:
        return f"lora_dropout={config.lora_dropout} changes the forward that trains"
    algorithm = config.chosen_algorithm
    if not algorithm.dual_mode:
        if config.mask_truncated_completions:
            return "mask_truncated_completions=True measures tokens that do not train"
        if config.vllm_importance_sampling_correction:
            return "vllm_importance_sampling_correction=True weighs advantages by the scores"
        return f"algorithm={config.algorithm!r} has to know the scores of all first" if algorithm.reads_scores else None
    if not config.rollout_sharing:
        return "rollout_sharing=False scores rows that do not train"
    if config.gradient_accumulation_steps is not None:
        return f"gradient_accumulation_steps={config.gradient_accumulation_steps} cuts questions into several updates"
    return None
