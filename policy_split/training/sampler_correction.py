"""Truncated importance weights: what corrects for an engine that draws from slightly other probabilities than ours."""

import torch
from torch import Tensor

from policy_split.config import PolicySplitConfig
from policy_split.rollouts.rollout import Rollout


def sampler_weights(rollout: Rollout, config: PolicySplitConfig) -> Tensor:
    """(4*P*n, T) factors of the advantages: min(clip_max, pi / pi of the engine) of each token, under the prompt that
    wrote it; 1 where they are not asked for, or the model itself drew. Of a rollout whose own rows are scored.
    """
    logprobs = rollout.scores.logprobs
    if rollout.sampler_logprobs is None or not config.vllm_importance_sampling_correction:
        return torch.ones_like(logprobs)
    ratio = (logprobs[rollout.own_rows] - rollout.sampler_logprobs).exp()
    halves = ratio.clamp(max=config.vllm_importance_sampling_clip_max).chunk(2)
    return torch.cat([halves[half] for _, half in rollout.blocks])
