"""Policy Split: dual-mode exploration in LLM reinforcement learning (arXiv 2604.11510), and its kernels."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from policy_split.algorithms.advantages import dual_mode_advantages
    from policy_split.config import PolicySplitConfig
    from policy_split.evaluation.evaluate import evaluate_modes
    from policy_split.losses.dual_mode import DualModeLoss, DualModeLossOutput, dual_mode_loss
    from policy_split.losses.filtering import sampling_mask
    from policy_split.losses.linear import linear_dual_mode_loss
    from policy_split.losses.weights import token_weights
    from policy_split.models.lm_head import patch_lm_head, unpatch_lm_head
    from policy_split.training.trainer import PolicySplitTrainer
    from policy_split_kernels.backends import get_backend, set_backend
    from policy_split_kernels.divergence import ModeDivergence, jensen_shannon_divergence, mode_divergence
    from policy_split_kernels.linear import (
        TokenLossOutput,
        linear_logprobs_and_entropy,
        linear_logprobs_entropy_lse,
        linear_token_loss,
    )
    from policy_split_kernels.logprobs import (
        LogprobsAndEntropy,
        LogprobsEntropyLse,
        logprobs_and_entropy,
        logprobs_entropy_lse,
    )

# Found when they are asked for: the loss is used without transformers, which takes seconds to import, and the commands
# have something to settle before PyTorch is there.
_FOUND_IN = {
    "DualModeLoss": "policy_split.losses.dual_mode",
    "DualModeLossOutput": "policy_split.losses.dual_mode",
    "LogprobsAndEntropy": "policy_split_kernels.logprobs",
    "LogprobsEntropyLse": "policy_split_kernels.logprobs",
    "ModeDivergence": "policy_split_kernels.divergence",
    "PolicySplitConfig": "policy_split.config",
    "PolicySplitTrainer": "policy_split.training.trainer",
    "TokenLossOutput": "policy_split_kernels.linear",
    "dual_mode_advantages": "policy_split.algorithms.advantages",
    "dual_mode_loss": "policy_split.losses.dual_mode",
    "evaluate_modes": "policy_split.evaluation.evaluate",
    "get_backend": "policy_split_kernels.backends",
    "jensen_shannon_divergence": "policy_split_kernels.divergence",
    "linear_dual_mode_loss": "policy_split.losses.linear",
    "linear_logprobs_and_entropy": "policy_split_kernels.linear",
    "linear_logprobs_entropy_lse": "policy_split_kernels.linear",
    "linear_token_loss": "policy_split_kernels.linear",
    "logprobs_and_entropy": "policy_split_kernels.logprobs",
    "logprobs_entropy_lse": "policy_split_kernels.logprobs",
    "mode_divergence": "policy_split_kernels.divergence",
    "patch_lm_head": "policy_split.models.lm_head",
    "sampling_mask": "policy_split.losses.filtering",
    "set_backend": "policy_split_kernels.backends",
    "token_weights": "policy_split.losses.weights",
    "unpatch_lm_head": "policy_split.models.lm_head",
}

__all__ = [
    "DualModeLoss",
    "DualModeLossOutput",
    "LogprobsAndEntropy",
    "LogprobsEntropyLse",
    "ModeDivergence",
    "PolicySplitConfig",
    "PolicySplitTrainer",
    "TokenLossOutput",
    "dual_mode_advantages",
    "dual_mode_loss",
    "evaluate_modes",
    "get_backend",
    "jensen_shannon_divergence",
    "linear_dual_mode_loss",
    "linear_logprobs_and_entropy",
    "linear_logprobs_entropy_lse",
    "linear_token_loss",
    "logprobs_and_entropy",
    "logprobs_entropy_lse",
    "mode_divergence",
    "patch_lm_head",
    "sampling_mask",
    "set_backend",
    "token_weights",
    "unpatch_lm_head",
]


def __getattr__(name: str) -> object:
    if name in _FOUND_IN:
        found = globals()[name] = getattr(importlib.import_module(_FOUND_IN[name]), name)
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
