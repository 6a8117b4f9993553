"""Run by test_killed: `vllm_process.py FOLDER KILLED_AT` trains with vLLM, and is killed in that step's rewards."""

import os
import signal
import sys
import warnings
from pathlib import Path

import tiny
import vllm_models

from policy_split.run_folder.checkpoints import checkpoints
from policy_split.training.trainer import PolicySplitTrainer


def main(folder, killed_at):
    step = [len(checkpoints(folder))]

    def reward(completions):
        step[0] += 1
        if step[0] == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return tiny.reward(completions)

    options = vllm_models.SETTINGS | {"max_steps": 4, "save_steps": 1, "log_completions": True}
    config = tiny.config(folder, **options)
    trainer = PolicySplitTrainer(vllm_models.model(), tiny.tokenizer(), reward, tiny.QUESTIONS, config)
    trainer.train(resume_from_checkpoint=bool(checkpoints(folder)))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]), int(sys.argv[2]))
