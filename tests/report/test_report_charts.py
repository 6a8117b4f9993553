"""Charts of a report: smoothed and thinned curves with their gaps, as Plotly's figures and as drawings."""

import math
import re
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_page import page_of
from run_folders import metrics_of, write

from policy_split.report.charts import Chart, Series, line_of, smooth, thin
from policy_split.report.runs import spread
from policy_split.report.static import drawing


def rows_with_gaps():
    rows = [metrics_of(step) for step in range(1, 8)]
    rows[2]["normal/reward"] = None
    rows[3]["normal/reward"] = math.nan
    rows[5]["normal/reward"] = math.inf
    del rows[6]["normal/reward"]
    return rows


def test_null_and_nan_leave_gaps(tmp_path):
    page = page_of([write(tmp_path / "one", metrics_jsonl=rows_with_gaps())], tmp_path)
    normal, high, alone = page.figures["training-reward"]["data"][1:] + page.figures["training-reward"]["data"][:1]
    # steps 1-2 are a line, and step 5 stands alone, as a dot
    assert (normal["x"], normal["y"], normal["mode"]) == ([1, 2, 5, 5], [0.5, 0.5, None, 0.5], "lines")
    assert (alone["x"], alone["y"], alone["mode"]) == ([5], [0.5], "markers")
    assert len(high["y"]) == 7
    for script in page.texts("script", type="application/json"):
        assert "nan" not in script.lower()
        assert "infinity" not in script.lower()


def test_lines_break_where_values_are_missing_between_what_is_kept():
    values = np.arange(10_000.0)
    values[4_000:4_003] = np.nan
    line = line_of(range(10_000), values)
    assert len(line.x) <= 501
    broken = [place for place, value in zip(line.x, line.y, strict=True) if math.isnan(value)]
    assert len(broken) == 1
    assert 4_003 <= broken[0] < 4_100
    assert line.alone == []
    assert line_of([1, 2, 3], np.array([np.nan, 2.0, np.nan])).alone == [(2, 2.0)]
    assert line_of([1, 2], np.array([np.nan, np.nan])).x == []


@given(st.lists(st.one_of(st.floats(-9, 9), st.just(math.nan), st.just(math.inf)), max_size=30))
def test_a_line_is_every_finite_value_and_breaks_at_every_gap(values):
    line = line_of(range(len(values)), np.array(values))
    stretches = [
        list(group) for known, group in groupby(range(len(values)), lambda x: math.isfinite(values[x])) if known
    ]
    drawn = [
        list(group) for gap, group in groupby(zip(line.x, line.y, strict=True), lambda p: math.isnan(p[1])) if not gap
    ]
    assert drawn == [[(x, values[x]) for x in stretch] for stretch in stretches]
    assert line.alone == [(stretch[0], values[stretch[0]]) for stretch in stretches if len(stretch) == 1]


def series(values, **options):
    return Series("a", [1.0, 2.0, 3.0][: len(values)], values, **({"color": 9, "run": 0, "mode": 1} | options))


def test_what_a_chart_says_of_its_curves():
    chart = Chart("c", "C", [series([1.0, math.nan, 3.0]), series([math.nan] * 3)], "step", "nats")
    assert chart.words == "nats over step. a: 1 at step 1, 3 at step 3."
    assert (chart.absent, len(chart.drawn)) == ("a", 1)
    assert chart.numbers.head == ["step", "a"]
    assert chart.numbers.rows == [["1", "1"], ["2", "–"], ["3", "3"]]
    assert Chart("c", "C", [], "step", "nats").absent == "no run has them"
    assert Chart("c", "C", [series([2.0])], "step", "nats").words == "nats over step. a: 2 at step 1."


@pytest.mark.parametrize(
    ("values", "from_zero"), [([0.0, 1.0], True), ([0.3, 1.0], True), ([0.5, 1.0], False), ([-0.1, 1.0], False)]
)
def test_an_axis_that_nearly_reaches_zero_begins_there(values, from_zero):
    assert Chart("c", "C", [series(values)], "step", "nats").from_zero is from_zero
    low = Chart("c", "C", [series([0.9, 1.0], low=[0.1, 0.9], high=[1.0, 1.1])], "step", "nats")
    assert low.from_zero


def test_bands_are_where_both_ends_are_known():
    band = series([1.0, 2.0, 3.0], low=[0.0, math.nan, 2.0], high=[2.0, 3.0, 4.0]).band
    assert band == ([1.0, 3.0], [0.0, 2.0], [2.0, 4.0])
    assert series([1.0], low=[0.0], high=[2.0]).band is None
    assert series([1.0, 2.0]).band is None


def test_a_drawing_is_in_the_colors_of_the_page_and_its_names_are_its_own():
    curves = [series([0.001, 0.0015, 0.002], color=color) for color in range(9)]
    curves.append(series([0.001, 0.002, 0.003], low=[0.0, 0.001, 0.002], high=[0.002, 0.003, 0.004], mode=0))
    svg = drawing(Chart("one", "One", curves, "step", "share & <part>"))
    assert svg == drawing(Chart("one", "One", curves, "step", "share & <part>"))
    for number in range(8):
        assert f"var(--c{number})" in svg
    assert re.findall(r"#[0-9a-f]{6}\b", svg) == []
    assert "var(--quiet)" in svg
    assert "share &amp; &lt;part&gt;" in svg
    assert ">0.0005<" in svg  # the marks keep their digits
    assert 'role="img" aria-labelledby="one-title one-words"' in svg
    assert {name[:4] for name in re.findall(r'(?:id="|href="#|url\(#)([^")]+)', svg)} == {"one-"}
    powers = drawing(Chart("k", "K", [series([0.1, 0.2, 0.3])], "k", "share", powers=True))
    assert [label for label in re.findall(">([^<>]+)</text>", powers) if label in "1234"] == ["1", "2", "3"]


def test_smoothing_and_thinning():
    values = np.full(100, 1.0)
    values[50], values[90] = 6.0, np.nan
    line = smooth(values)  # windows of 2 on each side
    assert line[[47, 48, 50, 52, 53]] == pytest.approx([1, 2, 2, 2, 1])
    assert math.isnan(line[90])
    assert line[[0, 89, 91, 99]] == pytest.approx(1.0)
    assert np.array_equal(smooth(values[:39]), values[:39])
    wave = np.sin(np.arange(10_000.0))
    wave[7_777], wave[3_000:3_100] = 50.0, np.nan
    kept = thin(wave)
    assert len(kept) <= 500
    assert 7_777 in kept
    assert (np.diff(kept) > 0).all()
    assert np.nanmin(wave[kept]) == np.nanmin(wave)
    assert np.isnan(wave[kept]).any()
    assert np.array_equal(thin(wave[:500]), np.arange(500))


def test_places_spread():
    assert spread(3, 6) == [0, 1, 2]
    assert spread(100, 4) == [0, 33, 66, 99]


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("value", [0.0, -2.5, 1e30, 1e-300])
def test_constant_curves_can_be_drawn(tmp_path, value, static):
    rows = [metrics_of(step) | {"normal/reward": value, "high_entropy/reward": value} for step in (1, 2)]
    page = page_of([write(tmp_path / "one", metrics_jsonl=rows)], tmp_path, static=static)
    assert page.texts("h3", id="training-reward-title") == ["Reward"]
    if static:
        assert "nan" not in "".join(e["d"] for e in page.all("path"))
    else:
        assert [trace["y"] for trace in page.figures["training-reward"]["data"]] == [[value] * 2] * 2


def test_a_long_run_stays_a_small_file(tmp_path):
    folder = write(tmp_path / "one", metrics_jsonl=[metrics_of(step, 0.1 * (step % 7)) for step in range(20_000)])
    page = page_of([folder], tmp_path)
    own = [each["text"] for each in page.all("script") if each.get("type") is None]
    assert len(page.source) - sum(map(len, own)) < 400_000
    assert max(len(trace["x"]) for figure in page.figures.values() for trace in figure["data"]) <= 500
    drawn = page_of([folder], tmp_path, static=True)
    assert len(drawn.source) < 400_000


def test_values_of_a_smoothed_curve_are_told_too(tmp_path):
    folder = write(tmp_path / "one", metrics_jsonl=[metrics_of(step, step % 2) for step in range(100)])
    traces = page_of([folder], tmp_path).figures["training-reward"]["data"]
    assert [trace["hoverinfo"] for trace in traces[:2]] == ["skip", "skip"]  # the values, behind every line
    assert [trace["opacity"] for trace in traces[:2]] == [0.28, 0.28]
    normal = traces[2]
    assert normal["hovertemplate"] == "%{y:.4~g} (unsmoothed %{customdata:.4~g})"
    assert normal["customdata"][:4] == [0.5, 1.5, 0.5, 1.5]
    assert normal["y"][50] == pytest.approx(0.9)  # 2 of 5
