"""Policy Split: dual-mode exploration in LLM reinforcement learning (arXiv 2604.11510), and its kernels."""

from policy_split_kernels.backends import get_backend, set_backend
from policy_split_kernels.logprobs import logprobs_and_entropy

from .loss import DualModeLoss, DualModeLossOutput, dual_mode_loss

__all__ = [
    "DualModeLoss",
    "DualModeLossOutput",
    "dual_mode_loss",
    "get_backend",
    "logprobs_and_entropy",
    "set_backend",
]
