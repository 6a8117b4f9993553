"""The document of a study: tables with intervals over the seeds, differences with p-values, what became of claims."""

import statistics
from datetime import datetime, timezone

from policy_split.evaluation.statistics import sizes_of_k
from policy_split.evaluation.tables import markdown

from .claims import are_judged, claims, measures_of
from .equal_tables import equal_tables, kl_table
from .plan import Plan
from .results import Results, measure_of
from .statistics import difference, difference_text, interval_text
from .story import H, N
from .variants import GRPO, POLICY_SPLIT, Variant


def document(
    plan: Plan, results: Results, *, command: str, figure: str, data: str, seconds: float | None = None
) -> str:
    """Markdown; `figure` and `data` are links to the curves."""
    parts = [
        f"# {plan.task.STORY.title}",
        _setting(plan, results, command, seconds),
        *_judged(plan, results),
        _ablations(plan, results),
        *_equal(plan, results),
        "## All measures at the end",
        f"Mean over {len(results.seeds)} seeds with the 95 % interval of Student's t. Both prompts are asked of every "
        "model; a baseline is trained with the normal one: its high-entropy row is what the prompt alone does.",
        _table(plan, results),
        *_paired(plan, results),
        "## pass@k",
        _pass_at_k(plan, results),
        "## Curves",
        f"![Entropy, reward and KL over the steps]({figure})",
        f"Running means over {plan.task.STORY.window} steps; bands, in panels of few, are the range over the seeds. "
        f"[Their numbers]({data}).",
        *_apart(plan, results),
        "## Settings",
        _settings(plan),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _setting(plan: Plan, results: Results, command: str, seconds: float | None) -> str:
    machine = results.environment["machine"]
    packages = results.environment["packages"]
    settings = {**plan.size.settings, **plan.settings}
    at_once = f"{plan.jobs} runs at a time, each on" if plan.jobs > 1 else "one run at a time, on"
    threads = f"{plan.threads} CPU threads" if plan.threads > 1 else "one CPU thread"
    device = ", ".join(machine["devices"]) or f"{at_once} {threads}"
    took = f" The whole took {seconds / 60:.0f} minutes." if seconds and round(seconds / 60) else ""
    questions = results.before["num_questions"]
    finished = sum(map(len, results.runs.values()))
    so_far = "" if finished == len(plan.runs) else f" {finished} of {len(plan.runs)} runs are finished."
    return (
        f"Written by `{command}`, {datetime.now(timezone.utc).date().isoformat()}: {device}, {machine['system']}, "
        f"torch {packages['torch']}, transformers {packages['transformers']}.{took}\n\n"
        f"{plan.task.described(plan.size)} For every algorithm {settings['max_steps']} steps of "
        f"{settings['prompts_per_step']} questions and {2 * settings['num_generations']} responses each. Measured on "
        f"{questions} questions of the {plan.split!r} split, {plan.samples} responses of each mode; seeds "
        f"{', '.join(map(str, results.seeds))}.{so_far}"
    )


def _judged(plan: Plan, results: Results) -> list[str]:
    if not are_judged(plan):
        return []
    said = "p-values of the paired t-test, and corrected for the number of all claims (Holm): a claim holds at 0.05."
    return ["## What the paper says, and what came out", claims(plan, results), said]


def _paired(plan: Plan, results: Results) -> list[str]:
    if GRPO.name not in results.runs:
        return []
    said = (
        "Paired by seed, with 95 % intervals and two-sided p-values of the paired t-test, each of one comparison and "
        "not corrected for their number."
    )
    return ["## Differences", said, _differences(plan, results)]


def _ablations(plan: Plan, results: Results) -> str:
    if POLICY_SPLIT.name not in results.runs:
        return ""
    rows = [["without it", "normal accuracy, minus Policy Split", "p", "high-entropy different of 8, minus", "p"]]
    for variant in plan.variants:
        if variant.ablation:
            cells = [variant.title]
            for measure, mode in (("accuracy", N), ("distinct_correct_8", H)):
                values = (results.values(name, measure, mode) for name in (variant.name, POLICY_SPLIT.name))
                cells += difference_text(difference(*values), plan.task.STORY.measures[measure][1])
            rows.append(cells)
    return markdown(rows) if len(rows) > 1 else ""


def _equal(plan: Plan, results: Results) -> list[str]:
    """Where the runs were measured on the way."""
    if plan.every is None:
        return []
    return ["## At equal cost", equal_tables(plan, results, measures_of(plan))]


def _apart(plan: Plan, results: Results) -> list[str]:
    window = plan.task.STORY.window
    table = kl_table(plan, results, window)
    if not table:
        return []
    said = f"Running means and medians over {window} steps of KL(high-entropy || normal) on training questions, nats."
    return ["## How far the modes went apart", said, table]


def _table(plan: Plan, results: Results) -> str:
    titles = [title.format(samples=plan.samples) for title, _ in measures_of(plan).values()]
    rows = [["algorithm", "prompt", *titles, "tokens generated", "time of a step / GRPO"]]
    before = [f"{measure_of(results.before, name, N):.{p}f}" for name, (_, p) in measures_of(plan).items()]
    rows.append([plan.task.STORY.start, N, *before, "", ""])
    for variant in plan.variants:
        for mode in (N, H):
            cells = [interval_text(results.values(variant.name, m, mode), p) for m, (_, p) in measures_of(plan).items()]
            runs = results.runs[variant.name]
            tokens = statistics.fmean(runs[seed].tokens for seed in results.seeds)
            written = f"{tokens / 1e6:.2f} M" if tokens > 1e5 else f"{tokens:,.0f}"
            ends = [written, _time(results, variant)] if mode == N else ["", ""]
            rows.append([variant.title, mode.replace("_", "-"), *cells, *ends])
    return markdown(rows)


def _differences(plan: Plan, results: Results) -> str:
    measures, compared = plan.task.STORY.measures, plan.task.STORY.compared
    rows = [["minus GRPO, normal prompt", "prompt", *(cell for name in compared for cell in (measures[name][0], "p"))]]
    for variant in plan.variants:
        for mode in (N, H) if variant.dual_mode else (N,):
            if variant.name == GRPO.name:
                continue
            cells: list[str] = []
            for measure in compared:
                ours, theirs = results.values(variant.name, measure, mode), results.values(GRPO.name, measure, N)
                cells += difference_text(difference(ours, theirs), measures[measure][1])
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


def _time(results: Results, variant: Variant) -> str:
    if GRPO.name not in results.runs:
        return "-"
    times, theirs = (
        statistics.median(results.runs[name][seed].step_time for seed in results.seeds)
        for name in (variant.name, GRPO.name)
    )
    return f"{times / theirs:.2f}"
