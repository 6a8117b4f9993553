"""What a baseline of `algorithms` trains in a step of the trainer: tokens of a rollout of one policy, their loss."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from policy_split.algorithms.table import Algorithm, LossVectors, Samples, TrainingTokens, token_loss, training_tokens
from policy_split.config import PolicySplitConfig
from policy_split.rollouts.metrics import Sums, k3
from policy_split.rollouts.rollout import Rollout

from .sampler_correction import sampler_weights

TokenLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


class BaselineTokens:
    """What the tokens of a rollout of one policy train on, with the methods of `DualTokens`."""

    advantages_of = None  # known before the first update

    def __init__(self, rollout: Rollout, config: PolicySplitConfig, seed: int):
        self.rollout, self.config, self.seed = rollout, config, seed
        self.algorithm = algorithm = config.chosen_algorithm
        self.needs_every_score = algorithm.reads_scores
        self.advantages = torch.zeros(rollout.mask.shape, device=rollout.mask.device)
        self.chosen: Tensor | None = None  # (2*P*n, T) bool: the tokens that the loss treats differently

    def live(self) -> list[int]:
        """Questions with an advantage, of an algorithm that reads rewards alone."""
        mask, rollout = self.rollout.mask, self.rollout
        rewards = rollout.by_question(rollout.rewards)
        zeros = torch.zeros((len(mask), 1), device=mask.device)
        graded = None if rollout.graded is None else rollout.by_question(rollout.graded)
        samples = Samples(rewards, zeros, zeros, torch.ones_like(zeros), graded)
        tokens = training_tokens(self.algorithm, samples, torch.Generator())
        trains = (tokens.advantages * tokens.mask).view(len(rewards), -1) != 0
        return trains.any(1).nonzero().squeeze(-1).tolist()

    def fill(self, questions: Sequence[int]) -> None:
        """Advantages of all tokens, and those that train: the others leave the rollout's train_mask."""
        tokens = baseline_tokens(self.algorithm, self.rollout, self.seed)
        self.advantages = tokens.advantages * sampler_weights(self.rollout, self.config)
        self.chosen = tokens.chosen
        self.rollout.train_mask = tokens.mask

    def sums(self) -> Sums:
        return {}


def baseline_tokens(algorithm: Algorithm, rollout: Rollout, seed: int) -> TrainingTokens:
    """`training_tokens` of a rollout with SINGLE_BLOCKS, in the rollout's order of rows; `seed` for what is drawn.

    The 2*n responses of a question are one group. What is of the whole batch (quantiles, means) is of this process's;
    the loss is then normalised over the tokens that train.
    """
    p, device = rollout.num_prompts, rollout.mask.device
    by_question = rollout.by_question(torch.arange(len(rollout.mode), device=device)).flatten()
    logprobs, entropy, _ = rollout.scores
    samples = Samples(
        rollout.rewards[by_question].view(p, -1),
        logprobs[by_question],
        entropy[by_question],
        rollout.train_mask[by_question],
        None if rollout.graded is None else rollout.graded[by_question].view(p, -1),
    )
    advantages, mask, chosen = training_tokens(algorithm, samples, torch.Generator().manual_seed(seed))
    back = by_question.argsort()
    return TrainingTokens(advantages[back], mask[back], None if chosen is None else chosen[back])


def baseline_loss(
    algorithm: Algorithm,
    vectors: LossVectors,  # (N,) each
    ref_logprobs: Tensor | None,  # (N,)
    *,
    entropy_coef: float,
    kl_coef: float,
    clip_low: float,
    clip_high: float,
) -> TokenLoss:
    """The algorithm's loss - entropy_coef * entropy + kl_coef * k3, as `linear_token_loss` takes it."""
    policy_loss = token_loss(algorithm, vectors, clip_low=clip_low, clip_high=clip_high)

    def loss_fn(logprobs: Tensor, entropy: Tensor, index: Tensor) -> Tensor:
        losses = policy_loss(logprobs, entropy, index)
        if entropy_coef:
            losses = losses - entropy_coef * entropy
        return losses if ref_logprobs is None else losses + kl_coef * k3(logprobs, ref_logprobs[index])

    return loss_fn
