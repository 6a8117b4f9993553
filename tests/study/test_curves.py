"""Curves of a study, thinned: the right numbers at few steps, the same from their file and in the figure."""

import json
import math

import numpy as np
import pytest

from policy_split.study.curves import Curve, read_curves, study_curves, write_curves
from policy_split.study.figures import BANDS, draw_curves
from policy_split.study.results import CURVES, Result, Results
from policy_split.study.variants import chosen_variants

VARIANTS = chosen_variants(["grpo", "policy_split"], 0.3)


def results(steps=400):
    """Every column of seed 1 is 1, 2, 3, ...; of seed 2, 10 more; GRPO has no high-entropy mode."""
    runs = {}
    for variant in VARIANTS:
        names = CURVES if variant.dual_mode else ("normal/entropy", "normal/reward")
        columns = {name: [math.nan] * steps for name in CURVES}
        runs[variant.name] = {
            seed: Result({}, columns | {name: [step + more for step in range(1, steps + 1)] for name in names}, 0, 0.0)
            for seed, more in ((1, 0.0), (2, 10.0))
        }
    return Results(runs, (1, 2), {}, {})


def test_curves_are_running_means_with_their_range():
    curves = study_curves(results(), VARIANTS)
    assert [(curve.variant, curve.panel, curve.mode) for curve in curves] == [
        ("grpo", "entropy", "normal"),
        ("grpo", "reward", "normal"),
        ("policy_split", "entropy", "normal"),
        ("policy_split", "entropy", "high_entropy"),
        ("policy_split", "reward", "normal"),
        ("policy_split", "reward", "high_entropy"),
        ("policy_split", "kl", "high_entropy"),
    ]
    for curve in curves:
        assert (curve.steps[0], curve.steps[-1], len(curve.steps)) == (20, 400, 50)
        last_twenty = np.array(curve.steps) - 9.5  # the mean of step-19 ... step
        assert curve.low == pytest.approx(last_twenty)
        assert curve.mean == pytest.approx(last_twenty + 5)
        assert curve.high == pytest.approx(last_twenty + 10)


@pytest.mark.parametrize(("steps", "shown"), [(1, [1]), (4, [4]), (22, [20, 21, 22])])
def test_short_runs_keep_what_they_have(steps, shown):
    assert study_curves(results(steps), VARIANTS)[0].steps == shown


def test_a_file_brings_the_curves_back(tmp_path):
    curves = [Curve("kl", "x", 'a "title"', "high_entropy", [1, 2], [0.123456, math.nan], [0.1, math.nan], [0.2, 1e-9])]
    write_curves(curves, tmp_path / "data" / "x.json", "about it")
    assert json.loads((tmp_path / "data" / "x.json").read_text())["about"] == "about it"
    (back,) = read_curves(tmp_path / "data" / "x.json")
    assert (back.title, back.steps, back.mean[0], back.high) == ('a "title"', [1, 2], 0.12346, [0.2, 1e-9])
    assert math.isnan(back.mean[1])
    assert math.isnan(back.low[1])


def test_a_figure_is_the_same_again_and_its_axes_fit(tmp_path):
    flat = [Curve("entropy", name, name, "normal", [1, 2], [0.1, 0.1], [0.1, 0.1], [0.1, 0.1]) for name in "abcd"]
    tall = Curve("entropy", "e", r"<e> & $\Co$", "high_entropy", [1, 2], [9.0, math.nan], [9.0, 8.0], [9.0, 9.5])
    draw_curves([*flat, tall], tmp_path / "one.svg")
    draw_curves([*flat, tall], tmp_path / "two.svg")
    text = (tmp_path / "one.svg").read_text()
    assert text == (tmp_path / "two.svg").read_text()
    assert r"&lt;e&gt; &amp; $\Co$, high-entropy" in text
    assert "mathdefault" in text  # powers of ten at its marks: 9 would press 0.1 flat
    draw_curves(flat, tmp_path / "one.svg")
    assert "mathdefault" not in (tmp_path / "one.svg").read_text()


@pytest.mark.parametrize("count", [BANDS, BANDS + 1])
def test_bands_are_drawn_while_they_do_not_hide_each_other(tmp_path, count):
    names = [f"v{k}" for k in range(count)]
    curves = [Curve("entropy", x, x, "normal", [1, 2], [0.2, 0.2], [0.1, 0.1], [0.3, 0.3]) for x in names]
    one_seed = Curve("reward", "v0", "v0", "normal", [1, 2], [0.2, 0.2], [0.2, 0.2], [0.2, 0.2])
    draw_curves([*curves, one_seed], tmp_path / "x.svg")
    bands = (tmp_path / "x.svg").read_text().count('<g id="FillBetweenPolyCollection_')
    assert bands == (count if count == BANDS else 0)
