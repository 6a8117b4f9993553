"""A reward of one's own, and two modes trained by it: `f(prompts, completions, completion_ids, **columns)`.

python examples/own_reward.py [OUTPUT_DIR]
"""

import sys
import tempfile

from policy_split import PolicySplitConfig, PolicySplitTrainer
from policy_split.countdown.model import countdown_model, countdown_tokenizer


def within_limit(completions: list[str], longest: list[int], **columns) -> list[float]:
    """1 for a response of at most `longest` words, a column of the dataset: each question has its own limit."""
    words = [len(text.split()) for text in completions]
    return [float(count <= limit) for count, limit in zip(words, longest, strict=True)]


def starts_with_its_number(prompts: list[str], completions: list[str], **columns) -> list[float]:
    pairs = zip(prompts, completions, strict=True)
    return [float(text.split()[:1] == prompt.split()[:1]) for prompt, text in pairs]


tokenizer = countdown_tokenizer()
config = PolicySplitConfig(
    output_dir=sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(),
    overwrite_output_dir=True,
    high_entropy_prompt="explore",
    reward_weights=[0.5, 1.0],  # one weight for each function
    reward_timeout=10.0,  # seconds: a reward that hangs stops the run, its state saved
    prompts_per_step=4,
    num_generations=4,
    max_completion_length=8,
    max_steps=3,
    learning_rate=1e-3,
    clamp="code",
    eta=0.3,
    save_steps=0,
)
questions = [{"prompt": f"{number} 2 3 = 7", "longest": 4} for number in range(1, 9)]
trainer = PolicySplitTrainer(
    countdown_model(tokenizer, seed=0), tokenizer, [within_limit, starts_with_its_number], questions, config
)
metrics = trainer.train()
for name in ("normal/reward", "high_entropy/reward", "normal/entropy", "policy_split/kl_high_normal"):
    print(f"{name}: {metrics[name]:.4f}")
