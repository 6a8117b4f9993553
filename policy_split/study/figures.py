"""The curves of a study as SVG: entropy, reward and KL over the steps, mean and range over the seeds."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from policy_split.extras import import_extra
from policy_split.modes import MODE_NAMES

from .results import Results
from .variants import Variant

PANELS = (
    ("entropy", "entropy of the rollouts (nats/token)"),
    ("reward", "reward on training questions"),
    ("kl", "KL between the modes (nats/token)"),
)
WINDOW = 20  # steps of the running mean


def draw_curves(results: Results, variants: Sequence[Variant], target: Path) -> None:
    """Write the figure; ImportError without matplotlib."""
    import_extra("matplotlib", "policy-split study").rcParams["svg.hashsalt"] = "policy-split"  # the same file again
    figure = import_extra("matplotlib", "policy-split study", "matplotlib.figure").Figure
    figure = figure(figsize=(13, 4), layout="constrained")
    for axes, (panel, title) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        for number, variant in enumerate(variants):
            for name, label, style in _curves(variant, panel):
                runs = [results.runs[variant.name][seed].curves[name] for seed in results.seeds]
                if not any(math.isfinite(value) for run in runs for value in run):
                    continue
                smooth = np.array([np.convolve(run, np.ones(WINDOW) / WINDOW, "valid") for run in runs])
                steps = np.arange(smooth.shape[1]) + min(WINDOW, len(runs[0]))
                axes.plot(steps, smooth.mean(0), style, color=f"C{number % 10}", label=label, linewidth=1.4)
                axes.fill_between(steps, smooth.min(0), smooth.max(0), color=f"C{number % 10}", alpha=0.15, linewidth=0)
        axes.set(title=title, xlabel="step")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize="small")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, metadata={"Date": None})


def _curves(variant: Variant, panel: str) -> list[tuple[str, str, str]]:
    """(column of metrics.jsonl, label, line style)"""
    if panel == "kl":
        label = f"{variant.title}: KL(high-entropy || normal)"
        return [("policy_split/kl_high_normal", label, "-")] if variant.dual_mode else []
    if panel == "reward" or not variant.dual_mode:
        return [(f"normal/{panel}", variant.title, "-")]
    modes = zip(MODE_NAMES, ("-", "--"), strict=True)
    return [(f"{mode}/{panel}", f"{variant.title}, {mode.replace('_', '-')}", style) for mode, style in modes]
