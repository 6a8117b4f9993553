"""The responses of a rollout as texts, and what the reward functions say of them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from transformers import TrainerState

from policy_split.config import PolicySplitConfig
from policy_split.data.rows import copied
from policy_split.isolation.foreign_calls import call_foreign
from policy_split.rewards.context import RewardContext
from policy_split.rewards.functions import compute_rewards
from policy_split.rewards.loading import RewardFunction

from .decoding import decoded


class Grades(NamedTuple):
    texts: list[str]
    rewards: list[float]  # NaN where no function had one
    context: RewardContext  # with what the functions wrote down

    @property
    def left_out(self) -> bool:
        """Whether a response has no reward."""
        return any(map(math.isnan, self.rewards))


def grade(
    tokenizer: Any,
    questions: Sequence[Mapping[str, Any]],  # (P,)
    asked: Sequence[int],  # (R,) the question of each response
    ids: Sequence[Sequence[int]],  # (R,) of the responses
    functions: Sequence[tuple[RewardFunction, float]],
    config: PolicySplitConfig,
    state: TrainerState | None,
) -> Grades:
    """Each response once. Raises what `compute_rewards` raises."""
    texts = decoded(tokenizer, ids, skip_special_tokens=config.skip_special_tokens)

    def graded() -> Grades:
        context = RewardContext() if state is None else RewardContext(state)
        # rows of its own for every response: what a reward does to one is not seen at another
        owners = [copied(dict(questions[question])) for question in asked]
        columns = {name: [owner[name] for owner in owners] for name in questions[0] if name != "prompt"}
        prompts = [owner["prompt"] for owner in owners]
        return Grades(texts, compute_rewards(functions, prompts, texts, ids, columns, context), context)

    return call_foreign(graded)
