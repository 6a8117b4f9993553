"""One or several runs as one HTML file that opens from disk and needs nothing else."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from policy_split.storage.whole_folder import replace_text

from .evaluation import evaluation_section
from .page import element, escape, page, table
from .runs import PIECES, Run, read_runs
from .samples import samples_section
from .training import training_section


def report(runs: Sequence[str | Path], output: str | Path = "report.html") -> Path:
    """Write the report of some run folders into one HTML file, and return its path.

    It has the training curves of both modes (entropies and KLs in nats per token), pass@k and the comparison where a
    folder has evaluation.json, samples, settings and versions; what a folder lacks is named. The file takes nothing
    from the network and runs no script. Raises ValueError for no folders, FileNotFoundError for a folder that is not
    there or holds nothing of a run.
    """
    found, target = read_runs(runs), Path(output)
    text = _page(found)
    target.parent.mkdir(parents=True, exist_ok=True)
    replace_text(target, text)
    return target


def _page(runs: Sequence[Run]) -> str:
    missing = [element("li", escape(f"{run.name}: {problem}")) for run in runs for problem in run.problems]
    introduction = element("p", escape(f"{'Runs' if len(runs) > 1 else 'Run'}: {', '.join(run.name for run in runs)}"))
    sections = {
        "Training": training_section(runs),
        "Evaluation": evaluation_section(runs),
        "Samples": samples_section(runs),
        "Configuration": _settings(runs, "settings", "No config.yaml or config.json."),
        "Versions": _settings(runs, "environment", "No environment.json."),
    }
    whole = f"Nothing: every run has {', '.join(PIECES)}, and all of it could be read."
    sections["Missing"] = element("ul", "".join(missing), {"class": "missing"}) if missing else element("p", whole)
    title = f"Policy Split: {runs[0].name}" if len(runs) == 1 else f"Policy Split: {len(runs)} runs"
    return page(title, introduction, sections)


def _settings(runs: Sequence[Run], kind: str, absent: str) -> str:
    """What differs between the runs, then all of it."""
    flat = {run.name: _flat(getattr(run, kind)) for run in runs}
    names = list(dict.fromkeys(name for settings in flat.values() for name in settings))
    parts = [element("p", escape(f"{name}: {absent}"), {"class": "missing"}) for name in flat if not flat[name]]
    full = [name for name in flat if flat[name]]
    if len(full) > 1:
        different = [name for name in names if len({flat[run].get(name) for run in full}) > 1]
        rows = [[escape(name), *(escape(flat[run].get(name, "–")) for run in full)] for name in different]
        parts.append(element("h3", "What differs"))
        parts.append(table(["", *full], rows, words=True) if rows else element("p", "Nothing."))
    for name in full:
        rows = [[escape(key), escape(value)] for key, value in flat[name].items()]
        inner = element("summary", escape(f"all of {name}")) + table(["name", "value"], rows, words=True)
        parts.append(element("details", inner))
    return "".join(parts)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """{"a": {"b": 1}} as {"a.b": "1"}."""
    flat: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = str(value)
    return flat
