"""Reward and entropy of both modes over the steps as a small picture, where matplotlib is installed."""

import importlib
import importlib.util
from pathlib import Path

from policy_split.run_folder.model_folder import PLOT

from .facts import Facts, is_number

PANELS = {"reward": "mean reward", "entropy": "entropy (nats/token)"}


def draw(facts: Facts, folder: Path) -> bool:
    """Write the picture; False where there is no matplotlib, or nothing to draw."""
    curves = {
        name: {
            mode: [(row["step"], row[f"{mode}/{name}"]) for row in facts.rows if _has(row, f"{mode}/{name}")]
            for mode in facts.modes
        }
        for name in PANELS
    }
    if max(len(points) for curve in curves.values() for points in curve.values()) < 2:
        return False
    if importlib.util.find_spec("matplotlib") is None:
        return False
    figure = importlib.import_module("matplotlib.figure").Figure(figsize=(7, 2.4), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for mode, points in curves[name].items():
            if points:
                axes.plot(*zip(*points, strict=True), label=mode.replace("_", "-"), linewidth=1)
        axes.set(title=title, xlabel="step")
        if axes.get_legend_handles_labels()[1]:  # a run may have none of the numbers
            axes.legend(frameon=False)
    figure.savefig(folder / PLOT, dpi=100)
    return True


def _has(row: object, name: str) -> bool:
    return isinstance(row, dict) and is_number(row.get("step")) and is_number(row.get(name))
