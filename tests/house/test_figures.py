"""The figures of the documentation: small, and those that the committed curves give."""

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from policy_split.study.curves import read_curves
from policy_split.study.story import WORDS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PICTURES = {".svg", ".png", ".jpg", ".jpeg", ".gif", ".webp"}
SVG = "{http://www.w3.org/2000/svg}"
DATA = sorted((DOCS / "data").glob("*.json"))
EARLIER = ("study", "study-split", "study-full")


@pytest.fixture(scope="module")
def figures():
    pytest.importorskip("matplotlib", reason="the extra plot is not installed")
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import figures
    finally:
        sys.path.remove(str(ROOT / "scripts"))
    return figures


def test_every_figure_is_small():
    sizes = {path.name: path.stat().st_size for path in DOCS.rglob("*") if path.suffix in PICTURES}
    assert {"study.svg", "study-split.svg", "study-full.svg", "two-modes.svg"} <= sizes.keys()
    assert {name: size for name, size in sizes.items() if size > 150_000} == {}
    assert sizes["two-modes.svg"] < 60_000


@pytest.mark.parametrize("path", DATA, ids=lambda path: path.stem)
def test_curves_are_curves(path):
    curves = read_curves(path)
    logged = [curve for curve in curves if curve.panel in ("entropy", "reward", "kl")]
    assert {curve.panel for curve in logged} == {"entropy", "reward", "kl"}
    form = {"target": "held_kl", "longer": "positive_correction"}.get(path.stem.split("-")[0], "policy_split")
    assert form in {curve.variant for curve in curves}
    for curve in logged:
        assert curve.steps[0] == (WORDS.window if path.stem == "study-words" else 20)
        assert path.stem not in EARLIER or curve.steps[-1] == 400
    for curve in curves:
        assert path.stem not in EARLIER or (curve in logged and "grpo" in {each.variant for each in curves})
        assert (np.diff(curve.steps) > 0).all()
        assert len(curve.steps) == len(curve.mean) <= 100
        assert (np.array(curve.low) <= curve.mean).all()
        assert (np.array(curve.mean) <= curve.high).all()


def numbers(path):
    """Every coordinate of a drawing, and its texts."""
    root = ElementTree.parse(path).getroot()
    drawn = [re.findall(r"-?\d+(?:\.\d+)?", each.get("d")) for each in root.iter(f"{SVG}path")]
    return [np.array(found, float) for found in drawn], [each.text for each in root.iter(f"{SVG}text")]


def test_figures_are_those_of_the_data(figures, tmp_path):
    figures.main(tmp_path)
    drawn = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.svg"))
    assert {path.stem for path in drawn} == {"two-modes", *EARLIER, *(path.stem for path in DATA)}
    for path in drawn:
        (coordinates, texts), (committed, said) = numbers(tmp_path / path), numbers(DOCS / path)
        assert texts == said
        assert len(coordinates) == len(committed)
        for ours, theirs in zip(coordinates, committed, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1.0)  # point: matplotlib's layout moves with its version


def luminance(color):
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def test_the_picture_of_the_modes_can_be_read_on_white_and_on_black(figures):
    text = (DOCS / "assets" / "two-modes.svg").read_text()
    colors = set(re.findall(r"#[0-9a-f]{6}\b", text))
    assert colors == {figures.GREY, *(color for _, color in figures.LINES.values())}  # and no page of its own
    for color in colors:
        for page in ("#ffffff", "#0d1117", "#1e2129"):
            low, high = sorted((luminance(color), luminance(page)))
            assert (high + 0.05) / (low + 0.05) > 3.5, (color, page)
