"""policy-split study: train what is compared, on the same warm start, and write the document."""

import json
import shlex
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from policy_split.extras import check_extra
from policy_split.models.source import check_source
from policy_split.storage.whole_folder import replace_text
from policy_split.study.curves import study_curves, write_curves
from policy_split.study.document import document
from policy_split.study.figures import draw_curves
from policy_split.study.plan import PLANS, SPLITS, Plan
from policy_split.study.results import read_results
from policy_split.study.runner import OutOfTime, run_study
from policy_split.study.variants import NAMES, Variant, chosen_variants
from policy_split.study.words_runs import WordsSize

HELP = """Compare algorithms on a built-in task: every variant from the same start, with the same number of
responses, over several seeds. A finished run is not repeated, and one that was stopped goes on: the same
command again. --minutes ends it with what is finished.
Writes the document, its figure, and the curves in it (data/*.json beside it)."""
# full takes up the runs of split
FOLDERS = {"cpu": "runs/study", "full": "runs/study-split"}
PLAN_HELP = (
    "quick: a look at it, minutes; target, target-small: fixed etas and one target of the KL, ten seeds; gpu: a larger "
    "model and task; words: sentences; cpu, split, full: earlier studies on a task that can be learnt by heart."
)
SECONDS = "seconds.json"  # spent so far, over all calls of a study


def run(arguments: list[str]) -> int:
    """0; 3 if --minutes ended it, its state saved; raises ValueError or OSError in one line for what is wrong."""
    chosen = _parse(arguments)
    check_extra("matplotlib", "policy-split study")  # before anything takes time
    plan, folder = _plan(chosen), Path(chosen.output or FOLDERS.get(chosen.plan, f"runs/study-{chosen.plan}"))
    if isinstance(plan.size, WordsSize):
        check_source(plan.size.model)
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    spent, code = _spent(folder), 0
    try:
        run_study(plan, folder, seconds=None if chosen.minutes is None else 60 * chosen.minutes)
    except OutOfTime as stopped:
        print(f"policy-split study: {stopped}", file=sys.stderr)
        code = 3
    finally:
        spent += time.monotonic() - started
        replace_text(folder / SECONDS, json.dumps({"seconds": round(spent, 1)}) + "\n")
    try:
        _write(plan, folder, chosen, arguments, spent)
    except ValueError as error:  # no seed is finished yet
        if not code:
            raise
        print(f"policy-split study: no document yet: {error}", file=sys.stderr)
    return code


def _write(plan: Plan, folder: Path, chosen: Any, arguments: list[str], seconds: float) -> None:
    """The document of what is finished, its figure and the curves in it."""
    results = read_results(plan, folder)
    target = Path(chosen.document or folder / "study.md")
    figure = target.with_suffix(".svg")
    command = shlex.join(["policy-split", "study", *arguments])
    curves = study_curves(results, plan.variants, plan.task.STORY.window)
    data = f"data/{target.stem}.json"
    write_curves(curves, target.parent / data, about=f"written by {command}")
    draw_curves(curves, figure)
    text = document(plan, results, command=command, figure=figure.name, data=data, seconds=seconds)
    replace_text(target, text)
    print(f"{text}\nstudy: {target.absolute()}")


def _parse(arguments: list[str]) -> Any:
    parser = ArgumentParser(
        prog="policy-split study", description=HELP, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--plan", choices=PLANS, default="main", help=f"What is run (main). {PLAN_HELP}")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help=f"Some of: {', '.join(NAMES)}.")
    parser.add_argument("--own", metavar="FILE", help='JSON {"name": {settings of PolicySplitConfig}} to compare too.')
    parser.add_argument("--seeds", nargs="+", type=int, help="In place of the plan's.")
    parser.add_argument(
        "--steps", type=int, help="Of each run, in place of the size's; a finished study goes on to more."
    )
    parser.add_argument("--model", help="Name or path of the model of --plan words, in place of SmolLM2-135M-Instruct.")
    parser.add_argument("--warm-start-steps", type=int, help="Of the common warm start, in place of the size's.")
    parser.add_argument("--split", choices=SPLITS, help="held_out: to choose settings on; test: the plan's.")
    parser.add_argument("--samples", type=int, help="Responses of each mode to each question of the evaluation.")
    parser.add_argument("--jobs", type=int, help="Runs at a time.")
    parser.add_argument("--threads", type=int, help="CPU threads of each.")
    parser.add_argument(
        "--minutes", type=float, help="Stop after so many, everything saved, and write what is finished; exit code 3."
    )
    parser.add_argument("--output", help="Folder of the runs. Not given: runs/study, or that of the plan.")
    parser.add_argument("--document", help="Markdown to write. Not given: study.md in the output folder.")
    return parser.parse_args(arguments)


def _plan(chosen: Any) -> Plan:
    plan = PLANS[chosen.plan]
    variants = plan.variants if chosen.variants is None else chosen_variants(chosen.variants, plan.eta, plan.own)
    variants += _own_variants(chosen.own) if chosen.own else ()
    given = {name: getattr(chosen, name) for name in ("split", "samples", "jobs", "threads")}
    given = {name: value for name, value in given.items() if value is not None}
    settings = {} if chosen.steps is None else {"max_steps": chosen.steps}
    seeds = plan.seeds if chosen.seeds is None else tuple(chosen.seeds)
    given |= _size(plan, chosen)
    return replace(plan, variants=variants, seeds=seeds, settings={**plan.settings, **settings}, **given)


def _size(plan: Plan, chosen: Any) -> dict[str, Any]:
    """The size, if one of its fields is given; ValueError for a field that it does not have."""
    given = {"model": chosen.model, "warm_start_steps": chosen.warm_start_steps}
    given = {name: value for name, value in given.items() if value is not None}
    own = {each.name for each in fields(plan.size)}
    for name in given:
        if name not in own:
            raise ValueError(f"--{name.replace('_', '-')} is not of --plan {chosen.plan}")
    size: Any = plan.size
    return {"size": replace(size, **given)} if given else {}


def _own_variants(path: str) -> tuple[Variant, ...]:
    try:
        named = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(named, dict) or not all(isinstance(settings, dict) for settings in named.values()):
        raise ValueError(f'{path}: expected {{"name": {{settings}}}}')
    taken = sorted(named.keys() & set(NAMES))
    if taken:
        raise ValueError(f"{path}: {taken[0]!r} is the name of a variant that is there already")
    return tuple(Variant(name, name, settings) for name, settings in named.items())


def _spent(folder: Path) -> float:
    path = folder / SECONDS
    return json.loads(path.read_text(encoding="utf-8"))["seconds"] if path.is_file() else 0.0
