"""What a run of four steps has left in its folder."""

import json

import tiny
import torch

STEPS = {"max_steps": 4, "save_steps": 1}


def steps(folder):
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def calls_before(count, then):
    """A reward function that does something else from its call number `count` on."""
    calls = []

    def reward(completions):
        calls.append(len(completions))
        return tiny.reward(completions) if len(calls) < count else then(completions)

    return reward
