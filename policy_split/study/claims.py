"""The paper's findings as comparisons of numbers, judged by p-values that are corrected for their number."""

import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from policy_split.evaluation.tables import markdown

from .budgets import values_at
from .plan import Plan
from .results import Results, measure_of
from .statistics import LEVEL, Difference, difference, difference_text, holm, p_text
from .story import BEST, OWN_NORMAL, H, N
from .variants import GRPO, POLICY_SPLIT, Variant

COSTS = {"tokens": "... at equal generated tokens", "seconds": "... at equal seconds"}


class Comparison(NamedTuple):
    text: str
    measure: str
    against: str  # whose numbers the others are
    ours: list[float]  # one of each seed
    theirs: list[float]

    @property
    def difference(self) -> Difference:
        return difference(self.ours, self.theirs)


def claims(plan: Plan, results: Results) -> str:
    """A table of each form of Policy Split, or why there is none: it takes GRPO and a form."""
    if not are_judged(plan):
        return "GRPO and Policy Split are not both among the runs."
    found = [(form, list(_comparisons(plan, results, form))) for form in _forms(plan)]
    corrected = iter(holm([each.difference.p_value for _, of_form in found for each in of_form]))
    parts: list[str] = []
    for form, of_form in found:
        if parts:
            parts.append(f"The same of another form, {form.title}:")
        rows = [["claim", form.title, "against", "difference [95 % interval]", "p", "p of all (Holm)", ""]]
        rows += [_row(plan, each, next(corrected)) for each in of_form]
        parts += [markdown(rows), _kl_grew(results, form)]
    return "\n\n".join(parts)


def are_judged(plan: Plan) -> bool:
    """Whether there is GRPO to compare with, and what to compare with it."""
    return GRPO in plan.variants and bool(_forms(plan))


def _forms(plan: Plan) -> list[Variant]:
    """Policy Split, then its other forms where the plan measures on the way, as one that compares does."""
    others = [variant for variant in plan.variants if variant.ablation and plan.every]
    return [*(variant for variant in plan.variants if variant.name == POLICY_SPLIT.name), *others]


def _row(plan: Plan, each: Comparison, corrected: float) -> list[str]:
    places = plan.task.STORY.measures[each.measure][1]
    against = f"{each.against}: {statistics.fmean(each.theirs):.{places}f}"
    cells = [f"{statistics.fmean(each.ours):.{places}f}", against, *difference_text(each.difference, places)]
    return [each.text, *cells, p_text(corrected), verdict(each.difference, corrected)]


def _kl_grew(results: Results, form: Variant) -> str:
    after = statistics.fmean(results.values(form.name, "kl", H))
    before = results.before["kl_high_normal"]["mean"]
    return (
        f"KL(high-entropy || normal) grew from {before:.4f} to {after:.3f} nats per token ({after / before:.0f} times; "
        f"the paper: from about 0.01 to over 0.2, in its own units)."
    )


def verdict(delta: Difference, p_value: float) -> str:
    """Of a claim that the difference is above 0."""
    if not p_value < 1 - LEVEL:  # NaN too
        return "not distinguishable"
    return "yes" if delta.mean > 0 else "NO"


def measures_of(plan: Plan) -> dict[str, tuple[str, int]]:
    """Those of the story that so many responses can have: measure -> (title, decimal places)."""
    drawn = {"pass@64": 64} | dict.fromkeys(("pass@8", "distinct_correct_8", "div_ngram_8", "div_bleu_8"), 8)
    return {name: value for name, value in plan.task.STORY.measures.items() if plan.samples >= drawn.get(name, 1)}


def _comparisons(plan: Plan, results: Results, form: Variant) -> Iterator[Comparison]:
    baselines = [variant for variant in plan.variants if not variant.dual_mode]
    measures = measures_of(plan)
    for place, claim in enumerate(each for each in plan.task.STORY.claims if each.measure in measures):
        rivals = {BEST: lambda measure: best(results, baselines, measure), OWN_NORMAL: lambda measure: form}
        other = rivals.get(claim.against, lambda measure: GRPO)(claim.measure)
        ours = results.values(form.name, claim.measure, claim.mode)
        yield Comparison(claim.text, claim.measure, other.title, ours, results.values(other.name, claim.measure, N))
        if plan.every and place == 0:  # the first one, at other costs than equal steps
            for name, text in COSTS.items():
                values = (
                    _at(results, form.name, name, claim.measure, claim.mode),
                    _at(results, other.name, name, claim.measure),
                )
                yield Comparison(text, claim.measure, other.title, *values)


def _at(results: Results, variant: str, cost: str, measure: str, mode: str = N) -> list[float]:
    return values_at(results, variant, cost, lambda milestone: measure_of(milestone.evaluation, measure, mode))


def best(results: Results, variants: Sequence[Variant], measure: str) -> Variant:
    return max(variants, key=lambda variant: statistics.fmean(results.values(variant.name, measure, N)))
