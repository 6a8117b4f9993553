"""A study of two algorithms and two seeds that takes seconds."""

from policy_split.countdown.problems import Countdown
from policy_split.countdown.sizes import CountdownSize
from policy_split.study.plan import Plan
from policy_split.study.variants import chosen_variants

TINY = CountdownSize(
    Countdown(numbers=2, largest=9, largest_target=20, fewest_answers=1, test_share=0.2),
    width=32,
    layers=2,
    train_questions=40,
    held_out_questions=12,
    warm_start_examples=100,
    warm_start_steps=200,
    own_settings={"max_steps": 4, "prompts_per_step": 4, "num_generations": 2, "save_steps": 1, "sample_steps": 0},
)
PLAN = Plan(TINY, chosen_variants(["grpo", "policy_split"], 0.6), (1, 2), samples=8, every=2)
