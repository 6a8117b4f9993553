"""What the Python blocks of the pages find: names that their readers have, and what is smaller here than there."""

import tiny
import torch
from datasets import Dataset

QUESTIONS = [{"prompt": question["prompt"]} for question in tiny.QUESTIONS]
# in every block and command that is executed
SMALLER = {
    "Qwen/Qwen3-1.7B": "tiny-model",  # no weights are downloaded
    'GRPOConfig("grpo-run")': 'GRPOConfig("grpo-run", use_cpu=True, bf16=False, report_to="none")',
    "max_steps=500": "max_steps=1, max_completion_length=4, use_cpu=True",
    'PolicySplitGRPOConfig("run", num_generations=16,': (
        'PolicySplitGRPOConfig("run", num_generations=4, per_device_train_batch_size=4, max_steps=1, '
        'max_completion_length=4, use_cpu=True, report_to="none", bf16=False,'
    ),
}


def smaller(source: str) -> str:
    for said, here in SMALLER.items():
        source = source.replace(said, here)
    return source


def names() -> dict:
    """Two sequences of five predicted tokens, as a loop of one's own has them."""
    random = torch.Generator().manual_seed(0)
    model = tiny.model()
    ids = torch.randint(8, 24, (2, 6), generator=random)
    mask = torch.tensor([[0, 1, 1, 1, 1], [0, 0, 1, 1, 1]], dtype=torch.bool)
    hidden = torch.randn(2, 5, 16, generator=random)
    logits_normal, logits_high_entropy = torch.randn(2, 2, 5, 24, generator=random)
    return {
        "torch": torch, "model": model, "tokenizer": tiny.tokenizer(), "lm_head": model.lm_head,
        "ids": ids, "attention_mask": torch.ones_like(ids), "targets": ids[:, 1:], "mask": mask,
        "hidden": hidden.requires_grad_(), "weight": model.lm_head.weight,
        "logits_normal": logits_normal.requires_grad_(), "logits_high_entropy": logits_high_entropy,
        "advantages": torch.randn(2, 5, generator=random), "advantage": torch.randn(2, generator=random),
        "mode": torch.tensor([[0] * 5, [1] * 5]), "old": torch.full((2, 5), -3.0),
        "dataset": Dataset.from_list(QUESTIONS), "reward": tiny.reward,
    }  # fmt: skip
