"""Policy Split on TRL's trainer: its config and its trainer, with two names changed.

python examples/trl_grpo.py [OUTPUT_DIR]        accelerate launch examples/trl_grpo.py with several processes
"""

import sys
import tempfile

from datasets import Dataset

from policy_split.countdown.model import countdown_model, countdown_tokenizer
from policy_split.countdown.problems import Countdown
from policy_split.integrations.trl.trainer import PolicySplitGRPOConfig, PolicySplitGRPOTrainer


def small_numbers(completions: list[str], **columns) -> list[float]:
    """The share of words that are a number below 50: something that a model with random weights can do."""
    words = [text.split() for text in completions]
    return [sum(word.isdigit() and int(word) < 50 for word in text) / max(1, len(text)) for text in words]


tokenizer = countdown_tokenizer()
questions: Dataset = Countdown(numbers=3, largest=9, largest_target=30).dataset(16, seed=1, split="train")
config = PolicySplitGRPOConfig(
    output_dir=sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(),
    # of Policy Split
    high_entropy_prompt="explore",
    alpha=0.5,
    eta_high=0.3,
    clamp="code",
    share_correction="truncated",
    # of TRL: 8 responses to a question, 4 of each mode
    num_generations=8,
    per_device_train_batch_size=8,
    max_completion_length=6,
    max_steps=2,
    learning_rate=1e-3,
    logging_steps=1,
    bf16=False,
    use_cpu=True,
    report_to="none",
    save_strategy="no",
)
trainer = PolicySplitGRPOTrainer(
    countdown_model(tokenizer, seed=0), small_numbers, config, train_dataset=questions, processing_class=tokenizer
)
trainer.train()
for name in ("normal/reward", "high_entropy/reward", "policy_split/kl_high_normal"):
    print(f"{name}: {trainer.state.log_history[0][name]:.4f}")
