"""The document of a study: tables with intervals over the seeds, differences with p-values, what became of claims."""

import math
import statistics
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone

from policy_split.evaluation.statistics import sizes_of_k
from policy_split.evaluation.tables import markdown, p_value_text

from .curves import WINDOW
from .plan import Plan
from .results import Results, measure_of
from .statistics import Difference, Estimate, difference, estimate
from .story import BEST, OWN_NORMAL, Claim, H, N
from .variants import GRPO, POLICY_SPLIT, Variant


def document(
    plan: Plan, results: Results, *, command: str, figure: str, data: str, seconds: float | None = None
) -> str:
    """Markdown; `figure` and `data` are links to the curves."""
    parts = [
        f"# {plan.task.STORY.title}",
        _setting(plan, results, command, seconds),
        "## What the paper says, and what came out",
        _claims(plan, results),
        "## All measures",
        f"Mean over {len(results.seeds)} seeds with the 95 % interval of Student's t. Both prompts are asked of every "
        "model; a baseline is trained with the normal one: its high-entropy row is what the prompt alone does.",
        _table(plan, results),
        "## Differences",
        "Paired by seed, with 95 % intervals and two-sided p-values of the paired t-test, each of one comparison and "
        "not corrected for their number.",
        _differences(plan, results),
        "## pass@k",
        _pass_at_k(plan, results),
        "## Curves",
        f"![Entropy, reward and KL over the steps]({figure})",
        f"Running means over {WINDOW} steps; bands are the range over the seeds. [Their numbers]({data}).",
        "## Settings",
        _settings(plan),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _setting(plan: Plan, results: Results, command: str, seconds: float | None) -> str:
    machine = results.environment["machine"]
    packages = results.environment["packages"]
    settings = {**plan.size.settings, **plan.settings}
    device = ", ".join(machine["devices"]) or f"{plan.jobs} runs at a time on {plan.threads} CPU thread(s) each"
    took = f" The whole took {seconds / 60:.0f} minutes." if seconds else ""
    questions = results.before["num_questions"]
    return (
        f"Written by `{command}`, {datetime.now(timezone.utc).date().isoformat()}: {device}, {machine['system']}, "
        f"torch {packages['torch']}, transformers {packages['transformers']}.{took}\n\n"
        f"{plan.task.described(plan.size)} For every algorithm {settings['max_steps']} steps of "
        f"{settings['prompts_per_step']} questions and {2 * settings['num_generations']} responses each. Measured on "
        f"{questions} questions of the {plan.split!r} split, {plan.samples} responses of each mode; seeds "
        f"{', '.join(map(str, results.seeds))}."
    )


def _claims(plan: Plan, results: Results) -> str:
    """Each of the paper's findings as a comparison of numbers; only where GRPO and Policy Split are among the runs."""
    names = [variant.name for variant in plan.variants]
    if GRPO.name not in names or POLICY_SPLIT.name not in names:
        return "GRPO and Policy Split are not both among the runs."
    split, rows = POLICY_SPLIT.name, [["claim", "Policy Split", "against", "difference [95 % interval]", "p", ""]]
    baselines = [variant for variant in plan.variants if not variant.dual_mode]
    measures = _measures(plan)

    def row(claim: Claim) -> list[str]:
        own = claim.against == OWN_NORMAL
        best = _best(results, baselines, claim.measure) if claim.against == BEST else GRPO
        other = POLICY_SPLIT if own else best
        ours = results.values(split, claim.measure, claim.mode)
        theirs = results.values(other.name, claim.measure, N)
        delta, places = difference(ours, theirs), measures[claim.measure][1]
        verdict = "yes" if delta.low > 0 else "NO" if delta.high < 0 else "not distinguishable"
        against = f"{other.title}: {statistics.fmean(theirs):.{places}f}"
        return [claim.text, f"{statistics.fmean(ours):.{places}f}", against, *_cells(delta, places), verdict]

    rows += [row(claim) for claim in plan.task.STORY.claims if claim.measure in measures]
    kl, before = results.values(split, "kl", H), results.before["kl_high_normal"]["mean"]
    times = statistics.fmean(kl) / before
    lines = [
        markdown(rows),
        f"KL(high-entropy || normal) grew from {before:.4f} to {statistics.fmean(kl):.3f} nats per token ({times:.0f} "
        "times; the paper: from about 0.01 to over 0.2, in its own units).",
        _ablations(plan, results),
    ]
    return "\n\n".join(line for line in lines if line)


def _ablations(plan: Plan, results: Results) -> str:
    rows = [["without it", "normal accuracy, minus Policy Split", "p", "high-entropy different of 8, minus", "p"]]
    for variant in plan.variants:
        if variant.ablation:
            cells = [variant.title]
            for measure, mode in (("accuracy", N), ("distinct_correct_8", H)):
                values = (results.values(name, measure, mode) for name in (variant.name, POLICY_SPLIT.name))
                cells += _cells(difference(*values), plan.task.STORY.measures[measure][1])
            rows.append(cells)
    return markdown(rows) if len(rows) > 1 else ""


def _table(plan: Plan, results: Results) -> str:
    titles = [title.format(samples=plan.samples) for title, _ in _measures(plan).values()]
    rows = [["algorithm", "prompt", *titles, "tokens generated", "time of a step / GRPO"]]
    before = [f"{measure_of(results.before, name, N):.{p}f}" for name, (_, p) in _measures(plan).items()]
    rows.append(["warm start", N, *before, "", ""])
    for variant in plan.variants:
        for mode in (N, H):
            cells = [
                _interval(estimate(results.values(variant.name, m, mode)), p) for m, (_, p) in _measures(plan).items()
            ]
            runs = results.runs[variant.name]
            tokens = statistics.fmean(runs[seed].tokens for seed in results.seeds)
            ends = [f"{tokens / 1e6:.2f} M", _time(results, variant)] if mode == N else ["", ""]
            rows.append([variant.title, mode.replace("_", "-"), *cells, *ends])
    return markdown(rows)


def _differences(plan: Plan, results: Results) -> str:
    measures, compared = plan.task.STORY.measures, plan.task.STORY.compared
    rows = [["minus GRPO, normal prompt", "prompt", *(cell for name in compared for cell in (measures[name][0], "p"))]]
    for variant in plan.variants:
        for mode in (N, H) if variant.dual_mode else (N,):
            if variant.name == GRPO.name or GRPO.name not in results.runs:
                continue
            cells: list[str] = []
            for measure in compared:
                ours, theirs = results.values(variant.name, measure, mode), results.values(GRPO.name, measure, N)
                cells += _cells(difference(ours, theirs), measures[measure][1])
            rows.append([variant.title, mode.replace("_", "-"), *cells])
    return markdown(rows)


def _pass_at_k(plan: Plan, results: Results) -> str:
    sizes = sizes_of_k(plan.samples)
    rows = [["algorithm", "prompt", *(f"k = {k}" for k in sizes)]]
    for variant in plan.variants:
        for mode in (N, H) if variant.dual_mode else (N,):
            means = [statistics.fmean(results.values(variant.name, f"pass@{k}", mode)) for k in sizes]
            rows.append([variant.title, mode.replace("_", "-"), *(f"{mean:.3f}" for mean in means)])
    return markdown(rows)


def _settings(plan: Plan) -> str:
    rows = [["algorithm", "settings over those of the size"]]
    rows += [[v.title, ", ".join(f"`{k}={value!r}`" for k, value in v.settings.items())] for v in plan.variants]
    common = {**plan.size.settings, **plan.settings}
    shown = ", ".join(f"`{name}={value!r}`" for name, value in common.items() if name != "seed")
    return f"{markdown(rows)}\n\nOf every run: {shown}."


def _measures(plan: Plan) -> dict[str, tuple[str, int]]:
    drawn = {"pass@64": 64} | dict.fromkeys(("pass@8", "distinct_correct_8", "div_ngram_8", "div_bleu_8"), 8)
    return {name: value for name, value in plan.task.STORY.measures.items() if plan.samples >= drawn.get(name, 1)}


def _best(results: Results, variants: Sequence[Variant], measure: str) -> Variant:
    return max(variants, key=lambda variant: statistics.fmean(results.values(variant.name, measure, N)))


def _time(results: Results, variant: Variant) -> str:
    if GRPO.name not in results.runs:
        return "-"
    times, theirs = (
        statistics.median(results.runs[name][seed].step_time for seed in results.seeds)
        for name in (variant.name, GRPO.name)
    )
    return f"{times / theirs:.2f}"


def _interval(value: Estimate, places: int) -> str:
    mean, half = f"{value.mean:.{places}f}", value.high - value.mean
    return mean if math.isnan(half) else f"{mean} ±{half:.{places}f}"


def _cells(delta: Difference, places: int) -> Iterator[str]:
    interval = "" if math.isnan(delta.low) else f" [{delta.low:+.{places}f}, {delta.high:+.{places}f}]"
    yield f"{delta.mean:+.{places}f}{interval}"
    yield "-" if math.isnan(delta.p_value) else p_value_text(delta.p_value)
