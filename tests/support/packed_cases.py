"""Questions of unequal length, and rollouts of them."""

import tiny
import torch
import transformers
from lm_models import SIZES

from policy_split.rewards.functions import as_reward_functions
from policy_split.rollouts.rollout import make_rollout

QUESTIONS = [*tiny.QUESTIONS, {"prompt": " ".join("1234567890" * 2), "wanted": "a"}]


def sliding(window=4):
    """Attends to the last 4 tokens, fewer than prompts and responses have."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.MistralForCausalLM(transformers.MistralConfig(**SIZES, sliding_window=window))
    with torch.no_grad():
        model.lm_head.weight.mul_(8.0)
    return model


def rolled(policy, config, seed=3, num_generations=3):
    functions = as_reward_functions(tiny.reward, None)
    return make_rollout(policy, QUESTIONS, functions, config, num_generations=num_generations, seed=seed)
