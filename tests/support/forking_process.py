"""Run by test_signals: `forking_process.py FOLDER` says for every way of forking_rewards what it gives in a training.

A line of JSON for each: what the reward returned before the training, and in a step of it.
"""

import json
import sys
import time
from pathlib import Path

import forking_rewards


def main(folder):
    import tiny
    import torch

    from policy_split.training.trainer import PolicySplitTrainer

    torch.set_num_threads(1)
    ways = dict(forking_rewards.WAYS)
    ways["DataLoader"] = lambda texts: [
        forking_rewards.grade(text)
        for batch in torch.utils.data.DataLoader(texts, 2, num_workers=1, multiprocessing_context="fork")
        for text in batch
    ]
    for number, (name, way) in enumerate(ways.items()):
        outside, inside = way(["a b", "b a a"]), []

        def reward(completions, way=way, inside=inside, **columns):
            inside.append(way(["a b", "b a a"]))
            return [0.0] * len(completions)

        config = tiny.config(folder / str(number), max_steps=1, reward_timeout=20.0)
        trainer = PolicySplitTrainer(tiny.model(), tiny.tokenizer(), reward, tiny.QUESTIONS, config)
        started = time.monotonic()
        trainer.train()
        said = {"way": name, "outside": outside, "inside": inside, "seconds": time.monotonic() - started}
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
