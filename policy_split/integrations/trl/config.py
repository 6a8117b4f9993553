"""Settings of Policy Split beside those of TRL's GRPO."""

import math
from dataclasses import dataclass, field
from typing import Any

from trl import GRPOConfig

from policy_split.algorithms.advantage_input import OPTIONS
from policy_split.messages import PLACES
from policy_split.modes import HIGH_ENTROPY_PROMPT

BONUS_ESTIMATORS = ("sampled", "entropy")
# what TRL offers that would silently be something else here
NEEDED: dict[str, tuple[tuple[Any, ...], str]] = {
    "scale_rewards": (("group", True), "the correctness advantage is (R - mean) / std of the group"),
    "multi_objective_aggregation": (("sum_then_normalize",), "rewards are summed, then standardised in their group"),
    "off_policy_mask_threshold": ((None,), "it reads one advantage per response, and here each token has its own"),
}


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class PolicySplitGRPOConfig(GRPOConfig):
    """GRPOConfig and what Policy Split needs (arXiv 2604.11510); ValueError names a bad field and its value.

    num_generations is TRL's: responses per question, half of them of each mode, so it must be even. A micro-batch has
    2 * per_device_train_batch_size rows, for every response is trained under both prompts.
    """

    alpha: float = _option(0.5, "Share of the own mode in the bonus; 1 - alpha is the push away from the other mode.")
    eta_high: float = _option(0.03, "Scale of the high-entropy mode's bonus; about 0.3 with clamp='code'.")
    eta_normal: float = _option(0.0, "Scale of the normal mode's own bonus, which is subtracted.")
    kappa: float | None = _option(2.0, "The bonus is clamped to |advantage| / kappa; None: no clamp.")
    clamp: str = _option("paper", "paper: eta * clip(B, bound); code: clip(eta * B, bound), as the authors released.")
    clamp_floor: float = _option(0.0, "The bound is max(|advantage|, clamp_floor) / kappa.")
    target_kl: float | None = _option(
        None,
        "KL(high-entropy || normal) in nats per token, 0.2 in the paper, at which a controller holds the modes by "
        "moving eta_high, which is then its start. None: eta_high stays.",
    )
    share_correction: str = _option(
        "none",
        "What a token of a borrowed response weighs, of x = pi_receiving / pi_writing: none: 1; truncated: min(1, x); "
        "positive: 1 if the response has a positive advantage, else min(1, x); shaped: x / (x + share_gamma).",
    )
    share_gamma: float = _option(0.1, "The gamma of share_correction='shaped'.")
    normalize: str = _option("zscore", "Of the bonus over its group: zscore, mean or none.")
    lowest_entropy_mask_ratio: float = _option(0.0, "Only tokens from this quantile of their group's bonus on get one.")
    correctness_mask: str = _option("none", "none, or all_same: a bonus only in groups whose rewards are all equal.")
    rollout_sharing: bool = _option(True, "False, an ablation: a mode trains on its own responses alone.")
    bonus_estimator: str = _option(
        "sampled", "sampled: -log pi(o_t); entropy: the exact entropy of each mode's distribution in its place."
    )
    high_entropy_prompt: str = _option(HIGH_ENTROPY_PROMPT, "System prompt of the high-entropy mode.")
    normal_prompt: str | None = _option(None, "System prompt of the normal mode.")
    high_entropy_place: str = _option(
        "system",
        "Where both prompts stand: system, in the system message; user, in front of the user's first message, for chat "
        "templates that refuse or drop a system message.",
    )
    fused_kernels: bool = _option(True, "Log-probs and entropies from our fused LM head in place of TRL's.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, (kind, allowed, expected) in OPTIONS.items():
            name = "eta_high" if name == "eta" else name
            if name in ("num_prompts", "num_generations"):
                continue
            value = getattr(self, name)
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool) or not allowed(value):
                raise ValueError(f"{name}={value!r} must be {expected}")
        if self.bonus_estimator not in BONUS_ESTIMATORS:
            raise ValueError(
                f"bonus_estimator={self.bonus_estimator!r} must be one of {', '.join(map(repr, BONUS_ESTIMATORS))}; "
                f"'exact' needs the logits of both modes at once, which PolicySplitTrainer has"
            )
        self._check_target()
        if self.num_generations % 2:
            raise ValueError(f"num_generations={self.num_generations} must be even: half of them for each mode")
        if not self.high_entropy_prompt or self.high_entropy_prompt == (self.normal_prompt or ""):
            raise ValueError("high_entropy_prompt must be a text of its own: it is all that tells the modes apart")
        if self.high_entropy_place not in PLACES:
            raise ValueError(
                f"high_entropy_place={self.high_entropy_place!r} must be one of {', '.join(map(repr, PLACES))}"
            )
        for name, (values, reason) in NEEDED.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name}={getattr(self, name)!r} is not for Policy Split: {reason}")
        if self.loss_type == "vespo":
            raise ValueError("loss_type='vespo' is not for Policy Split: it reads one advantage per response")

    def _check_target(self) -> None:
        target = self.target_kl
        if target is None:
            return
        if isinstance(target, bool) or not isinstance(target, (int, float)) or not 0 < target < math.inf:
            raise ValueError(f"target_kl={target!r} must be a finite number above 0, or None")
        if self.eta_high == 0:
            raise ValueError(f"target_kl={target} multiplies eta_high, and nothing comes of eta_high=0: give its start")

    @property
    def bonus_options(self) -> dict[str, Any]:
        """The settings that `dual_mode_advantages` takes."""
        names = [name for name in OPTIONS if name not in ("num_prompts", "num_generations", "eta")]
        return {name: getattr(self, name) for name in names} | {"eta": self.eta_high}

    max_prompt_length = None  # TRL cuts none either

    @property
    def template_kwargs(self) -> dict[str, Any] | None:
        kwargs: dict[str, Any] | None = self.chat_template_kwargs
        return kwargs

    @property
    def system_prompts(self) -> tuple[str | None, str | None]:
        """The system prompt of each mode, in the modes' order."""
        return self.normal_prompt, self.high_entropy_prompt
