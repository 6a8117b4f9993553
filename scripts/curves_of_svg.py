"""The curves of a study out of the SVG that matplotlib drew of them: for figures whose runs are gone.

python scripts/curves_of_svg.py docs/study-split.svg docs/data/study-split.json "where the figure is from"
"""

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from policy_split.study.curves import POINTS, Curve, write_curves
from policy_split.study.variants import NAMES, chosen_variants

SVG, LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
PANELS = ("entropy", "reward", "kl")


def main(source: str, target: str, about: str) -> None:
    titles = {variant.title: variant.name for variant in chosen_variants(NAMES, 0.3)}
    text = Path(source).read_text()
    parser = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))
    root = ElementTree.fromstring(text, parser)
    curves = []
    for number, panel in enumerate(PANELS, 1):
        axes = root.find(f".//{SVG}g[@id='axes_{number}']")
        x, y = scale(axes, "xtick"), scale(axes, "ytick")
        legend = axes.find(f"{SVG}g[@id='legend_{number}']")
        labels = [each.text.strip() for each in legend.iter() if each.tag is ElementTree.Comment]
        lines = [g for g in axes.findall(f"{SVG}g") if g.get("id").startswith("line2d")]
        bands = [g for g in axes.findall(f"{SVG}g") if g.get("id").startswith("FillBetween")]
        assert len(lines) == len(bands) == len(labels), (len(lines), len(bands), labels)
        for line, band, label in zip(lines, bands, labels, strict=True):
            title, _, mode = label.replace(": KL(high-entropy || normal)", ", high-entropy").partition(", ")
            points = path(line.find(f"{SVG}path"))
            height = float(band.find(f".//{SVG}use").get("y"))
            area = path(band.find(f".//{SVG}path"))
            area[:, 1] += height
            curves.append(curve(panel, titles[title], title, mode or "normal", x, y, points, area))
    write_curves(curves, Path(target), about)


def scale(axes, kind):
    """A function from points of the drawing to values, through the marks with their texts."""
    marks = [g for g in axes.iter(f"{SVG}g") if (g.get("id") or "").startswith(kind)]
    coordinate = "x" if kind == "xtick" else "y"
    at = [float(g.find(f".//{SVG}use").get(coordinate)) for g in marks]
    said = [float(next(e.text for e in g.iter() if e.tag is ElementTree.Comment)) for g in marks]
    slope, offset = np.polyfit(at, said, 1)
    assert np.abs(slope * np.array(at) + offset - said).max() < 1e-5 * max(said)
    return lambda values: slope * values + offset


def path(element):
    return np.array([[float(a), float(b)] for a, b in re.findall(r"[ML] (\S+) (\S+)", element.get("d"))])


def curve(panel, name, title, mode, x, y, points, area):
    steps, ends = x(points[:, 0]), y(points[:, 1])
    whole = np.arange(20, 401)
    assert np.allclose(steps[[0, -1]], whole[[0, -1]], atol=0.02), steps[[0, -1]]
    sides = {}
    for place, value in zip(x(area[:, 0]).round().astype(int), y(area[:, 1]), strict=True):
        sides.setdefault(place, []).append(value)
    assert sorted(sides) == whole.tolist()
    mean = np.interp(whole, steps, ends)
    low, high = (np.array([side(sides[step]) for step in whole]) for side in (min, max))
    inside = np.clip(mean, low, high)
    # matplotlib leaves out points of a line that are within a ninth of a pixel of it
    pixel = abs(y(1.0) - y(0.0))
    assert np.abs(mean - inside).max() < pixel, (name, panel, np.abs(mean - inside).max() / pixel)
    mean = inside
    places = np.unique(np.linspace(0, len(whole) - 1, POINTS).round().astype(int))
    numbers = (values[places].tolist() for values in (mean, low, high))
    return Curve(panel, name, title, mode.replace("-", "_"), whole[places].tolist(), *numbers)


if __name__ == "__main__":
    main(*sys.argv[1:])
