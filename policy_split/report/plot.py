"""Curves of a run as a picture: reward, entropy and KL of both modes over the steps (extra `plot`)."""

import json
from pathlib import Path

from policy_split.extras import import_extra
from policy_split.modes import MODE_NAMES
from policy_split.run_folder.output_dir import CURVES

PANELS = {
    "reward": "mean reward",
    "entropy": "entropy (nats/token)",
    "kl": "KL between the modes (nats/token)",
}
KL_NAMES = {"kl_high_normal": "high-entropy || normal", "kl_normal_high": "normal || high-entropy"}


def plot_run(folder: str | Path) -> Path:
    """Draw metrics.jsonl of a run into curves.png beside it, and return its path.

    Raises FileNotFoundError for a folder without metrics.jsonl, ValueError for an empty one, ImportError without
    matplotlib.
    """
    source = Path(folder) / "metrics.jsonl"
    if not source.is_file():
        raise FileNotFoundError(f"{source}: there is no such file; a run's folder has one from its first step on")
    steps = [json.loads(line) for line in source.read_text().splitlines()]
    if not steps:
        raise ValueError(f"{source}: no step has been written yet")
    figure_class = import_extra("matplotlib", "policy-split plot", "matplotlib.figure").Figure
    figure = figure_class(figsize=(12, 3.6), layout="constrained")
    for axes, (panel, title) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        curves = {mode.replace("_", "-"): f"{mode}/{panel}" for mode in MODE_NAMES}
        if panel == "kl":
            curves = {label: f"policy_split/{name}" for name, label in KL_NAMES.items()}
        for label, key in curves.items():
            points = [(step["step"], step[key]) for step in steps if step.get(key) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), label=label, linewidth=1)
        axes.set(title=title, xlabel="step")
        if axes.get_legend_handles_labels()[1]:  # a run may have none of the numbers
            axes.legend(frameon=False)
    target = source.with_name(CURVES)
    figure.savefig(target, dpi=150)
    return target
