"""Run by test_progress: `bars_process.py FOLDER KIND...` trains tiny models with whatever standard error is.

KIND: short, steps of a few milliseconds; long, a model that takes its time; warm, a warm start.
"""

import sys
import time
from pathlib import Path

import tiny
import torch

from policy_split.countdown.model import countdown_model, countdown_tokenizer
from policy_split.countdown.problems import Countdown, warm_start_examples
from policy_split.training.trainer import PolicySplitTrainer
from policy_split.training.warm_start import warm_start

torch.set_num_threads(1)


def slow_down(model):
    model.register_forward_hook(lambda *_: time.sleep(0.15))
    return model


def main(kind, folder):
    if kind == "warm":
        tokenizer = countdown_tokenizer()
        model = slow_down(countdown_model(tokenizer, seed=0, width=16, layers=1))
        examples = warm_start_examples(Countdown(2, 6, 12), 8, seed=0)
        warm_start(model, tokenizer, examples, encode=lambda prompt, mode: tokenizer.encode(prompt), steps=12)
        return
    model = tiny.model()
    options = {"disable_tqdm": None, "max_steps": 20 if kind == "short" else 1, "max_completion_length": 12}
    if kind == "long":
        model = slow_down(model)
        options |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    PolicySplitTrainer(model, tiny.tokenizer(), tiny.reward, tiny.QUESTIONS, tiny.config(folder, **options)).train()


if __name__ == "__main__":
    for each in sys.argv[2:]:
        if sys.stderr.isatty():
            print(f"== {each}", file=sys.stderr)
        main(each, Path(sys.argv[1], each))
