"""A tiny trainer, and what its run left: weights and lines of metrics."""

import json

import tiny

from policy_split.training.trainer import PolicySplitTrainer


def trainer(folder, *, model=None, reward=tiny.reward, dataset=tiny.QUESTIONS, chat=False, **options):
    inputs = {name: options.pop(name) for name in ("eval_dataset", "ref_model") if name in options}
    made = tiny.model() if model is None else model
    return PolicySplitTrainer(
        made, tiny.tokenizer(chat=chat), reward, dataset, tiny.config(folder, **options), **inputs
    )


def weights(run):
    return {name: value.clone() for name, value in run.policy.bare.state_dict().items()}


def lines(folder, *, timed=False):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return rows if timed else [{key: value for key, value in row.items() if key != "step_time"} for row in rows]
