"""What runs had reached when they had cost the same: steps, generated tokens or seconds."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from .milestones import Milestone
from .results import Results

BUDGETS: dict[str, tuple[str, Callable[[Milestone], float]]] = {  # name -> (title, what a run has spent by then)
    "steps": ("equal steps", lambda milestone: milestone.step),
    "tokens": ("equal generated tokens", lambda milestone: milestone.tokens),
    "seconds": ("equal seconds of training", lambda milestone: milestone.seconds),
}


def common_budget(results: Results, name: str) -> float:
    """The most that every run of the seeds has spent."""
    spent = BUDGETS[name][1]
    runs = (by_seed[seed] for by_seed in results.runs.values() for seed in results.seeds)
    return min(spent(run.milestones[-1]) for run in runs)


def value_at(milestones: Sequence[Milestone], budget: float, name: str, measure: Callable[[Milestone], float]) -> float:
    """The measure when that much was spent, on straight lines between milestones; ValueError beyond the last one."""
    spent = [BUDGETS[name][1](milestone) for milestone in milestones]
    if not spent[0] <= budget <= spent[-1]:
        raise ValueError(f"{name}: {budget} is not between {spent[0]} and {spent[-1]}, which the run has spent")
    place = next(i for i, each in enumerate(spent) if each >= budget)
    last = measure(milestones[place])
    if spent[place] == budget:
        return last
    first = measure(milestones[place - 1])
    share = (budget - spent[place - 1]) / (spent[place] - spent[place - 1])
    return last if math.isnan(first) else float(np.interp(share, (0.0, 1.0), (first, last)))


def values_at(
    results: Results, variant: str, name: str, measure: Callable[[Milestone], float], budget: float | None = None
) -> list[float]:
    """`value_at` of each seed, by default at the common budget."""
    budget = common_budget(results, name) if budget is None else budget
    runs = (results.runs[variant][seed] for seed in results.seeds)
    return [value_at(run.milestones, budget, name, measure) for run in runs]
