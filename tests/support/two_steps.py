"""A run of two steps that ended with a checkpoint, and one to go on with."""

import json

import tiny

from policy_split.training.trainer import PolicySplitTrainer

FIRST = {"max_steps": 2, "save_steps": 2, "num_generations": 2, "lr_scheduler_type": "constant", "temperature": 0.7}
FIRST |= {"weight_decay": 0.1}


def trainer(folder, *, model=None, tokenizer=None, reward=tiny.reward, data=tiny.QUESTIONS, **options):
    config = tiny.config(folder, **FIRST | options)
    return PolicySplitTrainer(model or tiny.model(), tokenizer or tiny.tokenizer(), reward, data, config)


def rates(folder):
    """The learning rate of each step."""
    return [json.loads(line)["learning_rate"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
