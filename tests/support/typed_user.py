"""What a user with a type checker writes; `make lint` checks it, strictly."""

import torch
from torch import Tensor

from policy_split import (
    DualModeLoss,
    DualModeLossOutput,
    LogprobsAndEntropy,
    ModeDivergence,
    PolicySplitConfig,
    TokenLossOutput,
    dual_mode_advantages,
    dual_mode_loss,
    linear_dual_mode_loss,
    linear_logprobs_and_entropy,
    linear_token_loss,
    logprobs_and_entropy,
    mode_divergence,
    sampling_mask,
    token_weights,
)


def scores(logits: Tensor, targets: Tensor) -> Tensor:
    out: LogprobsAndEntropy = logprobs_and_entropy(logits, targets, temperature=0.7)
    return out.logprobs + out.entropy


def loss(logits: Tensor, targets: Tensor, rewards: Tensor, mode: Tensor) -> Tensor:
    with torch.no_grad():
        old, _ = logprobs_and_entropy(logits, targets)
    advantages, _ = dual_mode_advantages(rewards, old, targets != 0, num_prompts=1, num_generations=4)
    weights = token_weights(targets != 0, "dapo", max_completion_length=256)
    keep = sampling_mask(logits, top_p=0.9)
    given: DualModeLossOutput = dual_mode_loss(
        logits, targets, advantages=advantages, mode=mode, weights=weights, keep_mask=keep
    )
    module: DualModeLossOutput = DualModeLoss(clip_high=0.28)(logits, targets, advantages=advantages, mode=mode)
    return given.loss + module.loss


def from_hidden(hidden: Tensor, weight: Tensor, targets: Tensor, advantages: Tensor, mode: Tensor) -> Tensor:
    logprobs, entropy = linear_logprobs_and_entropy(hidden, weight, targets)
    own: TokenLossOutput = linear_token_loss(hidden, weight, targets, lambda l, e, index: -l - 0.1 * e)
    fused = linear_dual_mode_loss(hidden, weight, targets, advantages=advantages, mode=mode)
    return logprobs.sum() + entropy.sum() + own.loss + fused.loss


def distance(a: Tensor, b: Tensor) -> Tensor:
    out: ModeDivergence = mode_divergence(a, b)
    return out.kl_ab


def config() -> PolicySplitConfig:
    return PolicySplitConfig(output_dir="run", kappa=None, reward_weights=[1.0, 0.5])
