"""The token-level advantages of a dual-mode rollout, question by question, and what became of the bonus."""

from collections.abc import Sequence

import torch

from policy_split.algorithms.advantages import advantages_and_bonuses, equal_rewards
from policy_split.config import PolicySplitConfig
from policy_split.rollouts.metrics import Sums, bonus_sums, grouped_rewards
from policy_split.rollouts.questions import rows_of_questions
from policy_split.rollouts.rollout import Rollout

from .sampler_correction import sampler_weights


class DualTokens:
    """Advantages (4*P*n, T) of a rollout, 0 until `fill` has been called for a row's question; with regularizer="loss"
    there is no bonus in them."""

    needs_every_score = False  # no question looks at another
    chosen = None

    def __init__(self, rollout: Rollout, config: PolicySplitConfig):
        self.rollout, self.config = rollout, config
        self.advantages: torch.Tensor
        self.advantages, self.bonus, self.free = torch.zeros((3, *rollout.mask.shape), device=rollout.mask.device)

    def live(self) -> list[int]:
        return live_questions(self.rollout, self.config)

    def advantages_of(self, rows: Sequence[int]) -> torch.Tensor:
        """The table of advantages with those of the questions that the rows, all of theirs, belong to."""
        rollout = self.rollout
        half, n = rollout.num_prompts * rollout.num_generations, rollout.num_generations
        self.fill(sorted({row % half // n for row in rows}))
        return self.advantages

    def fill(self, questions: Sequence[int]) -> None:
        """Those of some questions, whose rows have been scored: no question looks at another."""
        if not questions:
            return
        rollout, config = self.rollout, self.config
        rows = torch.tensor(rows_of_questions(rollout, questions), device=rollout.mask.device)
        options = dict(config.bonus_options)
        options |= {"num_prompts": len(questions), "num_generations": rollout.num_generations}
        logprobs, entropy, divergence = rollout.scores
        options["surprise"] = None if config.bonus_estimator == "sampled" else entropy[rows]
        if config.bonus_estimator == "exact" and divergence is not None:
            options["divergence"] = divergence[rows]
        for name, of_rows in (("graded", rollout.graded), ("own", rollout.own)):
            options[name] = None if of_rows is None else of_rows[rows]
        arguments = (rollout.rewards[rows], logprobs[rows], rollout.train_mask[rows])
        advantages, bonus, free = advantages_and_bonuses(*arguments, **options)
        advantages = advantages * sampler_weights(rollout, config)[rows]
        for name, values in (("advantages", advantages), ("bonus", bonus), ("free", free)):
            table = getattr(self, name).to(values.dtype)  # float64 models keep their precision
            table[rows] = values
            setattr(self, name, table)

    def sums(self) -> Sums:
        """What the clamp has taken away."""
        return bonus_sums(self.rollout, self.bonus, self.free, shared=self.config.rollout_sharing)


def live_questions(rollout: Rollout, config: PolicySplitConfig) -> list[int]:
    """Those whose tokens can have an advantage: rewards that differ, or a bonus that does without.

    A question's two groups share its responses, unless rollout_sharing is off: one that lives keeps both.
    """
    if config.kappa is None or config.clamp_floor > 0:
        return list(range(rollout.num_prompts))
    dead = equal_rewards(grouped_rewards(rollout, shared=config.rollout_sharing))
    return (~dead).any(1).flatten().nonzero().squeeze(-1).tolist()
