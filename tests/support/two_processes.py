"""Run by test_trainer in two processes: they answer different questions and must end with the same weights."""

import sys

import tiny
import torch

from policy_split.training.trainer import PolicySplitTrainer

options = {"prompts_per_step": 4, "save_steps": 2, "num_iterations": 2, "beta": 0.1, "per_device_train_batch_size": 7}
options |= {"max_steps": 3, "eval_steps": 3, "eval_num_samples": 2, "overwrite_output_dir": True}


def run(resume=False, **more):
    config = tiny.config(sys.argv[1], **options | more)
    # five questions to evaluate: the last round has one for the first rank and none for the second
    trainer = PolicySplitTrainer(
        tiny.model(), tiny.tokenizer(), tiny.reward, tiny.QUESTIONS, config, eval_dataset=tiny.HELD_OUT[:5]
    )
    rollout = trainer.sample()
    trainer.train(resume_from_checkpoint=resume)
    weights = torch.cat([parameter.detach().flatten() for parameter in trainer.policy.bare.parameters()])
    return trainer.accelerator, weights, rollout


accelerator, weights, rollout = run()
assert accelerator.num_processes == 2
assert rollout.num_prompts == 2
all_weights = accelerator.gather(weights[None])
assert torch.equal(all_weights[0], all_weights[1])
first_prompt = accelerator.gather(rollout.prompt_ids[:1, -1:])
assert first_prompt[0] != first_prompt[1]
_, resumed, _ = run(resume=f"{sys.argv[1]}/checkpoints/checkpoint-2")
assert torch.equal(resumed, weights)
torch.distributed.destroy_process_group()
