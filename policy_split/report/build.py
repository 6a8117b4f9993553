"""One or several runs as one HTML file that opens from disk and needs nothing else."""

from collections.abc import Sequence
from pathlib import Path

from policy_split.storage.whole_folder import replace_text

from .evaluation import read_evaluations
from .page import render
from .runs import PIECES, read_runs
from .samples import read_samples
from .settings import read_settings
from .training import run_legend, training_charts


def report(runs: Sequence[str | Path], output: str | Path = "report.html", *, static: bool = False) -> Path:
    """Write the report of some run folders into one HTML file, and return its path.

    It has the training curves of both modes (entropies and KLs in nats per token), pass@k and the comparison where a
    folder has evaluation.json, samples, settings and versions; what a folder lacks is named. The file takes nothing
    from the network. Its charts are Plotly's: the library, about 5 MB, is in the file, and no other script may run.
    static: charts as SVG by matplotlib (extra `plot`), no script at all, some hundred KB. Raises ValueError for no
    folders, FileNotFoundError for a folder that is not there or holds nothing of a run, ImportError for a static report
    without matplotlib.
    """
    found, target = read_runs(runs), Path(output)
    text = render(
        "page.html.j2",
        static=static,
        title=f"Policy Split: {found[0].name if len(found) == 1 else f'{len(found)} runs'}",
        names=[run.name for run in found],
        legend=run_legend(found),
        charts=training_charts(found),
        evaluations=read_evaluations(found),
        samples=read_samples(found),
        settings={
            "Configuration": (read_settings(found, "settings"), "No config.yaml or config.json."),
            "Versions": (read_settings(found, "environment"), "No environment.json."),
        },
        problems=[f"{run.name}: {problem}" for run in found for problem in run.problems],
        pieces=list(PIECES),
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    replace_text(target, text)
    return target
