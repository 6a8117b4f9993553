"""Runs of a few steps whose responses are a function of the question: the same batch for any number of processes."""

import random
from collections import Counter
from contextlib import contextmanager
from unittest.mock import patch

import tiny
import torch

from policy_split.rollouts import engine
from policy_split.training.trainer import PolicySplitTrainer

# prompts_per_step is 4: each of two processes has two questions
OPTIONS = {"prompts_per_step": 4, "num_generations": 3, "max_steps": 3, "per_device_train_batch_size": 7}
OPTIONS |= {"adam_epsilon": 1e-3, "overwrite_output_dir": True, "lr_scheduler_type": "linear"}
# Other tokens side by side: norms that are computed in float32 round differently
OPTIONS |= {"share_prompts": False}
SHARED = "shared prompts"
CASES = {
    "fused head, dapo": {"loss_type": "dapo", "num_iterations": 2, "learning_rate": 3e-2},
    "logits, grpo, reference": {"fused_lm_head": False, "loss_type": "grpo", "beta": 0.1},
    "tied, checkpointing": {"tied": True, "gradient_checkpointing": True, "mask_truncated_completions": True},
    "few advantages": {"sparse": True, "per_device_train_batch_size": 2, "max_steps": 2},
    "baseline": {"algorithm": "adaptive_entropy", "loss_type": "dr_grpo", "per_device_train_batch_size": 2},
    "first pass": {"score_with_update": "on", "per_device_train_batch_size": 12, "target_kl": 0.05},
    "few advantages, first pass": {"sparse": True, "score_with_update": "on", "max_steps": 2},
    SHARED: {"score_with_update": "on", "share_prompts": True, "per_device_train_batch_size": 12, "max_steps": 2},
    "exact bonus": {"bonus_estimator": "exact", "eta": 0.3, "packed_batches": True, "max_steps": 2},
}
SAVED = "checkpoint"  # of this case: steps 2 and 3 are saved


def trainer(folder, *, tied=False, sparse=False, **options):
    model = tiny.model(tie_word_embeddings=tied).double()
    reward = sparse_reward if sparse else tiny.reward
    config = tiny.config(folder, **OPTIONS | options)
    return PolicySplitTrainer(model, tiny.tokenizer(), reward, tiny.QUESTIONS, config)


def sparse_reward(prompts, completions) -> list[float]:
    """Other than 0 for one question alone: most groups, and in some steps a whole process, have no advantage."""
    return [value * (prompt == "4") for prompt, value in zip(prompts, tiny.reward(completions), strict=True)]


@contextmanager
def responses_by_question():
    """Of 1 to 6 tokens, with the end of sequence or without: the k-th of a prompt is always the same."""

    def sample(policy, prompts, config):
        seen, width, rows = Counter(), config.max_completion_length, []
        for prompt in prompts:
            drawn = random.Random(f"{list(prompt)} {seen[tuple(prompt)]}")
            seen[tuple(prompt)] += 1
            words = [drawn.randrange(8, len(tiny.WORDS)) for _ in range(drawn.randint(0, width))]
            rows.append((words + [2] + [0] * width)[:width])
        return torch.tensor(rows)

    with patch.object(engine, "sample", sample):
        yield


def weights(run):
    """Whole, of every parameter."""
    return {
        name: value.full_tensor() if hasattr(value, "full_tensor") else value.clone()
        for name, value in run.policy.bare.state_dict().items()
    }


def same(found, expected, what, rtol=1e-6, atol=1e-9):
    if SHARED in what and rtol:
        rtol, atol = 1e-4, 1e-6
    assert found.keys() == expected.keys(), what
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{what}, weight of {n}: {m}"
        )


def same_metrics(found, expected, what):
    assert len(found) == len(expected), what
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys(), what
        for name in set(theirs) - {"step_time"}:
            assert abs(ours[name] - theirs[name]) <= 1e-6 + 1e-5 * abs(theirs[name]), (what, name, ours, theirs)
