"""All measures of every variant where they had cost the same: one table for steps, tokens and seconds each."""

import math
from collections.abc import Callable
from statistics import fmean, median

from policy_split.evaluation.tables import markdown
from policy_split.modes import HIGH_ENTROPY, MODE_NAMES, NORMAL

from .budgets import BUDGETS, common_budget, values_at
from .milestones import WINDOW, Milestone
from .plan import Plan
from .results import Results, measure_of
from .statistics import interval_text

UNITS: dict[str, Callable[[float], str]] = {
    "steps": lambda x: f"{x:,.0f} steps",
    "tokens": lambda x: f"{x / 1e6:.2f} M tokens",
    "seconds": lambda x: f"{x:,.0f} s",
}
NOTE = (
    "Mean over the seeds with the 95 % interval of Student's t, between evaluations on straight lines. Training "
    f"accuracy: of the normal prompt's responses over the last {WINDOW} steps, on questions that were new then where "
    "there are new ones; dead groups: those whose rewards were all equal, over the same steps. Seconds are those of "
    "steps, evaluations apart; of runs on one thread of a CPU, the processor's own."
)


def equal_tables(plan: Plan, results: Results, measures: dict[str, tuple[str, int]]) -> str:
    """Markdown: the note and three tables; `measures`: name -> (title, decimal places)."""
    parts = [NOTE]
    for name, (title, _) in BUDGETS.items():
        budget = common_budget(results, name)
        parts += [f"### At {title}: {UNITS[name](budget)}", _table(plan, results, name, budget, measures)]
    return "\n\n".join(parts)


def _table(plan: Plan, results: Results, name: str, budget: float, measures: dict[str, tuple[str, int]]) -> str:
    titles = [title.format(samples=plan.samples) for title, _ in measures.values()]
    rows = [["algorithm", "prompt", "training accuracy", *titles, "dead groups"]]
    for variant in plan.variants:
        for mode in (NORMAL, HIGH_ENTROPY) if variant.dual_mode else (NORMAL,):

            def cell(measure: Callable[[Milestone], float], places: int, of: str = variant.name) -> str:
                return interval_text(values_at(results, of, name, measure, budget), places)

            own = mode == NORMAL
            cells = [cell(_measure(each, MODE_NAMES[mode]), places) for each, (_, places) in measures.items()]
            ends = [cell(lambda m: m.training, 3) if own else "", cell(lambda m: m.dead, 2) if own else ""]
            rows.append([variant.title, MODE_NAMES[mode].replace("_", "-"), ends[0], *cells, ends[1]])
    return markdown(rows)


def _measure(name: str, mode: str) -> Callable[[Milestone], float]:
    return lambda milestone: measure_of(milestone.evaluation, name, mode)


def kl_table(plan: Plan, results: Results, window: int) -> str:
    """How far the modes went apart on the way: of each seed the largest and the last running mean of the KL, and eta.

    Its estimate has a heavy tail, where a token that is drawn is all but impossible in the other mode: beside the
    largest mean stands the largest median, which no single step moves. "" where no variant has two modes.
    """
    head = ["algorithm", "largest KL of a seed", "largest median of a seed", "last KL", "its range over seeds"]
    rows = [[*head, "last eta", "its range"]]
    for variant in plan.variants:
        if not variant.dual_mode:
            continue
        runs = [results.runs[variant.name][seed] for seed in results.seeds]
        curves = [run.curves["policy_split/kl_high_normal"] for run in runs]
        means, medians = ([running(of, each, window) for each in curves] for of in (fmean, median))
        last = [each[-1] for each in means]
        etas = [run.curves["policy_split/eta"][-1] for run in runs]
        fixed = [float(variant.settings.get("eta", math.nan)) if math.isnan(eta) else eta for eta in etas]
        cells = [f"{max(map(max, each)):.3f}" for each in (means, medians)]
        cells += [f"{sum(last) / len(last):.3f}", f"{min(last):.3f} to {max(last):.3f}"]
        cells += [f"{sum(fixed) / len(fixed):.3f}", f"{min(fixed):.3f} to {max(fixed):.3f}"]
        rows.append([variant.title, *cells])
    return markdown(rows) if len(rows) > 1 else ""


def running(of: Callable[[list[float]], float], values: list[float], window: int) -> list[float]:
    """That function of the `window` values up to each; of fewer values of all of them."""
    window = min(window, len(values))
    return [of(values[end - window : end]) for end in range(window, len(values) + 1)]
