"""What a step scores before its updates, what its first update scores, and what it does not score at all."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from policy_split.config import PolicySplitConfig
from policy_split.rollouts.micro_batches import micro_batches
from policy_split.rollouts.questions import measured_questions, question_batches, rows_of_questions, score_weights
from policy_split.rollouts.rollout import Rollout


@dataclass
class ScorePlan:
    """Live questions train; of the others some are scored for the metrics, and stand for those that are not."""

    together: bool  # the first update scores the rows that it trains
    live: list[int]  # questions; in every process as many, filled up by idle ones
    before: list[int]  # rows that are scored before the first update
    measured: list[int]  # questions without a gradient that are scored for the metrics


def plan_scores(
    rollout: Rollout,
    config: PolicySplitConfig,
    live: Sequence[int],
    first_rows: Sequence[int],
    accelerator: Accelerator,
    *,
    together: bool,
    show_first: bool,
    seed: int,
) -> ScorePlan:
    """Fills rollout.score_weight and says who scores what.

    first_rows: of the first optimizer step. show_first: the first question's scores are shown to people, so it is
    scored, trained or not. Every process has as many micro-batches, for under FSDP2 they wait for each other in each.
    """
    idle = [question for question in range(rollout.num_prompts) if question not in set(live)]
    measured = list(idle) if config.log_all_entropies else measured_questions(idle, seed)
    rollout.score_weight = score_weights(rollout, live, idle, measured)
    shown = [0] if show_first and 0 in idle and 0 not in measured else []
    most = _largest(len(live), accelerator)
    together = together and most > 0  # where nothing trains, one row alone makes the optimizer's step
    spare = [question for question in idle if question not in {*measured, *shown}]
    if together:
        filled = [*live, *[*spare, *measured, *shown][: most - len(live)]]
        first = set(first_rows)
        trained = [row for row in rows_of_questions(rollout, live) if row not in first]
        before = [*trained, *rows_of_questions(rollout, [q for q in (*measured, *shown) if q not in filled])]
    else:
        filled = list(live)
        before = rows_of_questions(rollout, sorted({*live, *measured, *shown}))
    count = _largest(len(before), accelerator)
    if count > len(before):
        others = [row for row in range(len(rollout.mode)) if row not in set(before)]
        before = [*before, *others[: count - len(before)]]
    return ScorePlan(together, filled, before, measured)


def first_batches(
    rollout: Rollout, config: PolicySplitConfig, plan: ScorePlan, step_rows: Sequence[int], accelerator: Accelerator
) -> list[list[int]]:
    """Micro-batches of the first optimizer step: whole questions, where their advantages follow from the scores."""
    if config.chosen_algorithm.dual_mode:
        return question_batches(rollout, plan.live, config)
    live, of_step = set(rows_of_questions(rollout, plan.live)), set(step_rows)
    count = max(1, _largest(len(live & of_step), accelerator))
    ordered = [*sorted(live & of_step), *sorted(of_step - live)]
    return micro_batches(rollout, ordered[:count], config)


def _largest(count: int, accelerator: Accelerator) -> int:
    """Over all processes."""
    if accelerator.num_processes == 1:
        return count
    return int(accelerator.gather(torch.tensor([count], device=accelerator.device)).max())
