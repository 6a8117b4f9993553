"""DualModeLoss inside transformers.Trainer: autocast, gradient checkpointing and accumulation as it does them.

python examples/transformers_trainer.py [OUTPUT_DIR]
"""

import sys
import tempfile

import torch
from transformers import Trainer, TrainingArguments

from policy_split import DualModeLoss
from policy_split.countdown.model import countdown_model, countdown_tokenizer

LENGTH = 6  # tokens of a response
tokenizer = countdown_tokenizer()
loss_fn = DualModeLoss(loss_type="dapo", entropy_coef=(0.0, 0.01), clip_high=0.28)


class TwoModes(Trainer):
    """Rows with input_ids, and for each token of the response its advantage, old log-prob and mode."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        input_ids = inputs.pop("input_ids")
        logits = model(input_ids=input_ids, logits_to_keep=LENGTH + 1).logits[:, :-1]
        out = loss_fn(logits, input_ids[:, -LENGTH:], **inputs)
        return (out.loss, out) if return_outputs else out.loss


generator = torch.Generator().manual_seed(0)
rows = [
    {
        "input_ids": torch.randint(4, len(tokenizer), (12,), generator=generator),
        "advantages": torch.randn(LENGTH, generator=generator),
        "old_logprobs": torch.full((LENGTH,), -4.7),
        "mode": torch.full((LENGTH,), row % 2),  # 0 normal, 1 high-entropy
    }
    for row in range(32)
]
arguments = TrainingArguments(
    output_dir=sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(),
    per_device_train_batch_size=8,
    gradient_accumulation_steps=2,
    bf16=True,
    max_steps=4,
    logging_steps=1,
    learning_rate=1e-3,
    remove_unused_columns=False,
    use_cpu=True,
    report_to="none",
    save_strategy="no",
)
model = countdown_model(tokenizer, seed=0)
model.gradient_checkpointing_enable({"use_reentrant": False})
trainer = TwoModes(model, arguments, train_dataset=rows)
trainer.train()
print("loss of each step:", *(f"{log['loss']:+.4f}" for log in trainer.state.log_history if "loss" in log))
