"""Policy Split: dual-mode exploration in LLM reinforcement learning (arXiv 2604.11510), and its kernels."""

import importlib
from typing import TYPE_CHECKING

from policy_split.algorithms.advantages import dual_mode_advantages
from policy_split.losses.dual_mode import DualModeLoss, DualModeLossOutput, dual_mode_loss
from policy_split.losses.filtering import sampling_mask
from policy_split.losses.linear import linear_dual_mode_loss
from policy_split.losses.weights import token_weights
from policy_split_kernels.backends import get_backend, set_backend
from policy_split_kernels.divergence import ModeDivergence, jensen_shannon_divergence, mode_divergence
from policy_split_kernels.linear import TokenLossOutput, linear_logprobs_and_entropy, linear_token_loss
from policy_split_kernels.logprobs import LogprobsAndEntropy, logprobs_and_entropy

if TYPE_CHECKING:
    from policy_split.config import PolicySplitConfig
    from policy_split.evaluation.evaluate import evaluate_modes
    from policy_split.models.lm_head import patch_lm_head, unpatch_lm_head
    from policy_split.training.trainer import PolicySplitTrainer

# Found when they are asked for: the loss is used without transformers, which takes seconds to import.
_LATER = {
    "PolicySplitConfig": "config",
    "PolicySplitTrainer": "training.trainer",
    "evaluate_modes": "evaluation.evaluate",
    "patch_lm_head": "models.lm_head",
    "unpatch_lm_head": "models.lm_head",
}

__all__ = [
    "DualModeLoss",
    "DualModeLossOutput",
    "LogprobsAndEntropy",
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
    "linear_token_loss",
    "logprobs_and_entropy",
    "mode_divergence",
    "patch_lm_head",
    "sampling_mask",
    "set_backend",
    "token_weights",
    "unpatch_lm_head",
]


def __getattr__(name: str) -> object:
    if name in _LATER:
        return getattr(importlib.import_module(f".{_LATER[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
