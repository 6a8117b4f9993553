"""Draws the figures of the documentation from the curves of the studies in docs/data.

python scripts/figures.py [FOLDER]      docs unless another is given: study*.svg and assets/two-modes.svg
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from policy_split.study.curves import Curve, read_curves
from policy_split.study.figures import draw_curves, write_svg

DOCS = Path(__file__).parents[1] / "docs"
STUDIES = tuple(sorted(path.stem for path in (DOCS / "data").glob("*.json")))
SPLIT = "study-split"  # the one in which the modes part
PANELS = {
    "entropy": "Entropy (nats/token)",
    "reward": "Reward",
    "kl": "KL between the modes (nats/token)",
}
# each at least 3.5 times as bright or as dark as a white page and as a dark one
GREY = "#767b85"
LINES = {  # (variant, mode) -> label, color
    ("policy_split", "normal"): ("Policy Split, normal mode", "#2f81d6"),
    ("policy_split", "high_entropy"): ("Policy Split, high-entropy mode", "#d9670f"),
    ("grpo", "normal"): ("GRPO", GREY),
}
STYLE = {
    "font.size": 9,
    "text.color": GREY,
    "axes.labelcolor": GREY,
    "axes.edgecolor": GREY,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": GREY,
    "ytick.color": GREY,
}


def draw_two_modes(curves: Sequence[Curve], target: Path) -> None:
    """What training does to the two modes, beside GRPO: for a page of any color."""
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 2.9), layout="constrained", facecolor="none")
        lines = {}
        for axes, (panel, title) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
            for curve in curves:
                if curve.panel == panel and (curve.variant, curve.mode) in LINES:
                    label, color = LINES[curve.variant, curve.mode]
                    axes.fill_between(curve.steps, curve.low, curve.high, color=color, alpha=0.2, linewidth=0)
                    (lines[label],) = axes.plot(curve.steps, curve.mean, color=color, linewidth=1.8)
            axes.set(title=title, xlabel="step", facecolor="none")
            axes.set_ylim(bottom=0)
        figure.legend(lines.values(), lines, loc="outside lower center", ncols=3, frameon=False)
        write_svg(figure, target)


def main(folder: Path) -> None:
    for name in STUDIES:
        draw_curves(read_curves(DOCS / "data" / f"{name}.json"), folder / f"{name}.svg")
    draw_two_modes(read_curves(DOCS / "data" / f"{SPLIT}.json"), folder / "assets" / "two-modes.svg")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS)
