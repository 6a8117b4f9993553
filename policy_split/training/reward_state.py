"""How far a run is, for reward functions: the trainer_state of transformers' trainers."""

import math

from accelerate import Accelerator
from transformers import TrainerState

from policy_split.config import PolicySplitConfig
from policy_split.run_folder.checkpoints import Progress


def trainer_state(
    config: PolicySplitConfig, progress: Progress, max_steps: int, num_questions: int, accelerator: Accelerator
) -> TrainerState:
    """A new one; global_step counts the steps that are finished, log_history stays empty: metrics.jsonl has that."""
    return TrainerState(
        epoch=progress.step * config.prompts_per_step / num_questions,
        global_step=progress.step,
        max_steps=max_steps,
        num_train_epochs=math.ceil(config.num_train_epochs),
        num_input_tokens_seen=progress.num_tokens,
        logging_steps=config.logging_steps,
        eval_steps=config.eval_steps,
        save_steps=config.save_steps,
        train_batch_size=config.per_device_train_batch_size,
        is_local_process_zero=accelerator.is_local_main_process,
        is_world_process_zero=accelerator.is_main_process,
    )
