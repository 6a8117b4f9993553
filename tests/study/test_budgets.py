"""Runs at equal cost: literal interpolations, the common budget, Holm's correction, what claims make of them."""

import math
from dataclasses import replace
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy_split.study.budgets import common_budget, value_at, values_at
from policy_split.study.claims import claims, verdict
from policy_split.study.curves import study_curves
from policy_split.study.equal_tables import equal_tables, kl_table, running
from policy_split.study.milestones import Milestone
from policy_split.study.plan import PLANS
from policy_split.study.results import CURVES, Result, Results
from policy_split.study.statistics import Difference, difference_text, holm, interval_text
from policy_split.study.variants import chosen_variants

VARIANTS = chosen_variants(["grpo", "policy_split"], 0.3)
MEASURES = ("accuracy", "entropy", "distinct_correct_8", "distinct_correct")


def evaluation(value):
    modes = {
        mode: {name: {"mean": value + more} for name in MEASURES} | {"pass_at_k": {"8": {"mean": value + more}}}
        for mode, more in (("normal", 0.0), ("high_entropy", 0.1))
    }
    return {"modes": modes, "kl_high_normal": {"mean": value / 10}, "kl_normal_high": {"mean": value / 20}}


def run(values, *, tokens, seconds, eta=math.nan):
    """Evaluations of those values after 0, 2, 4, ... steps, each of which cost so much."""
    points = tuple(
        Milestone(2 * i, 2 * i * tokens, 2 * i * seconds, evaluation(value), value + 0.01, 0.25)
        for i, value in enumerate(values)
    )
    curves = {name: [0.1] * points[-1].step for name in CURVES}
    curves["policy_split/kl_high_normal"] = [0.1, 0.5, 0.3, 0.2][: points[-1].step]
    curves["policy_split/eta"] = [eta] * points[-1].step
    return Result(points[-1].evaluation, curves, points[-1].tokens, seconds, points)


def results():
    grpo = {seed: run([0.2, 0.4, 0.5 + more], tokens=100, seconds=1.0) for seed, more in ((1, 0.0), (2, 0.1))}
    split = {
        seed: run([0.2, 0.3, 0.6 + more], tokens=110, seconds=2.0, eta=0.4) for seed, more in ((1, 0.0), (2, 0.05))
    }
    return Results({"grpo": grpo, "policy_split": split}, (1, 2), evaluation(0.2), {})


def accuracy(milestone):
    return milestone.evaluation["modes"]["normal"]["accuracy"]["mean"]


def test_literal_budgets():
    found = results()
    assert [common_budget(found, name) for name in ("steps", "tokens", "seconds")] == [4, 400, 4.0]
    assert values_at(found, "grpo", "seconds", accuracy) == [0.5, 0.6]
    # 4 s are half of Policy Split's: its milestone of 2 steps; 400 tokens lie at 3.636 of its steps
    assert values_at(found, "policy_split", "seconds", accuracy) == [0.3, 0.3]
    expected = [0.3 + (400 - 220) / 220 * (last - 0.3) for last in (0.6, 0.65)]
    assert values_at(found, "policy_split", "tokens", accuracy) == pytest.approx(expected, rel=1e-12)
    assert values_at(found, "policy_split", "steps", accuracy, 1.0) == pytest.approx([0.25, 0.25])
    assert values_at(found, "policy_split", "steps", accuracy, 0.0) == [0.2, 0.2]
    with pytest.raises(ValueError, match="tokens: 441 is not between 0 and 440"):
        value_at(found.runs["policy_split"][1].milestones, 441, "tokens", accuracy)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6), st.floats(0, 1))
def test_between_milestones_values_stay_between_theirs(values, share):
    points = run(values, tokens=10, seconds=0.5).milestones
    budget = share * points[-1].step
    place = min(int(budget // 2), len(values) - 2)
    low, high = sorted(values[place : place + 2])
    assert low - 1e-12 <= value_at(points, budget, "steps", accuracy) <= high + 1e-12


def test_what_the_start_does_not_have_is_taken_from_the_milestone_after_it():
    points = run([0.2, 0.4], tokens=10, seconds=1.0).milestones
    first = Milestone(0, 0, 0.0, points[0].evaluation)
    assert value_at((first, points[1]), 1, "steps", lambda m: m.training) == pytest.approx(0.41)


@pytest.mark.parametrize(
    ("p_values", "corrected"),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.03, 0.04, 0.01], [0.06, 0.06, 0.03]),
        ([0.5, 0.9], [1.0, 1.0]),
        ([math.nan, 0.02], [math.nan, 0.02]),
        ([0.0], [0.0]),
        ([], []),
    ],
)
def test_holm(p_values, corrected):
    assert holm(p_values) == pytest.approx(corrected, nan_ok=True)


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_only_makes_larger_and_keeps_the_order(p_values):
    corrected = holm(p_values)
    assert all(p <= c <= 1 for p, c in zip(p_values, corrected, strict=True))
    pairs = sorted(zip(p_values, corrected, strict=True))
    assert [c for _, c in pairs] == sorted(c for _, c in pairs)


def test_verdicts():
    assert verdict(Difference(0.1, 0.05, 0.15, 0.01), 0.04) == "yes"
    assert verdict(Difference(-0.1, -0.15, -0.05, 0.01), 0.04) == "NO"
    assert verdict(Difference(0.1, 0.01, 0.19, 0.03), 0.06) == "not distinguishable"  # alone it would have been one
    assert verdict(Difference(0.1, math.nan, math.nan, math.nan), math.nan) == "not distinguishable"
    assert difference_text(Difference(0.1, math.nan, math.nan, math.nan), 2) == ("+0.10", "-")
    assert interval_text([math.nan, math.nan], 2) == "-"


def cells(text, start):
    (row,) = (line for line in text.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_tables_at_equal_cost():
    plan = plan_of_two()
    text = equal_tables(plan, results(), {"accuracy": ("accuracy", 3), "kl": ("KL", 3)})
    titles = [line for line in text.splitlines() if line.startswith("###")]
    assert titles == [
        "### At equal steps: 4 steps",
        "### At equal generated tokens: 0.00 M tokens",
        "### At equal seconds of training: 4 s",
    ]
    seconds = text[text.index(titles[2]) :]
    high = next(line for line in seconds.splitlines() if "high-entropy" in line)
    assert "0.400" in high  # its normal mode has 0.3 there
    assert cells(seconds, "GRPO")[2:5] == ["0.560 ±0.635", "0.550 ±0.635", "0.028 ±0.032"]
    assert cells(seconds, "GRPO")[-1] == "0.25 ±0.00"


def plan_of_two():
    return PLANS["main"].__class__(PLANS["main"].size, VARIANTS, (1, 2), samples=8, every=2)


def test_claims_are_corrected_together_and_made_at_every_cost():
    text = claims(plan_of_two(), results())
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 10
    assert "at equal generated tokens" in rows[1]
    assert "at equal seconds" in rows[2]
    tokens = [cell.strip() for cell in rows[1].strip("|").split("|")]
    assert tokens[1:3] == ["0.566", "GRPO: 0.550"]
    assert all(line.rstrip("| ").endswith(("yes", "NO", "not distinguishable")) for line in rows)
    assert claims(PLANS["target"], results()).startswith("GRPO and Policy Split are not both")


def test_every_form_is_judged_and_all_are_corrected_together():
    plan = plan_of_two()
    both = chosen_variants(["grpo", "policy_split", "positive_correction"], 0.3)
    plan = PLANS["main"].__class__(plan.size, both, (1, 2), samples=8, every=2)
    found = results()
    seeds = ((1, 0.0), (2, 0.02))
    other = {seed: run([0.2, 0.4, 0.7 + more], tokens=110, seconds=2.0, eta=0.4) for seed, more in seeds}
    found.runs["positive_correction"] = other
    first, said, second = claims(plan, found).partition("The same of another form, full weight for right responses:")
    assert said
    tables = [[line for line in part.splitlines() if line.startswith("| ")][2:] for part in (first, second)]
    assert list(map(len, tables)) == [10, 10]
    assert "KL(high-entropy || normal) grew from 0.0200 to 0.071" in second
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for rows in tables for row in rows]
    assert [row[1] for row in cells if row[0].endswith("more accurate than GRPO")] == ["0.625", "0.710"]
    alone = [cell.strip() for cell in claims(plan_of_two(), results()).splitlines()[2].strip("|").split("|")]
    assert float(cells[0][5]) >= float(alone[5])  # corrected for twice as many
    del found.runs["policy_split"]
    form = claims(replace(plan, variants=(both[0], both[2])), found)
    assert "The same of another form" not in form
    assert len([line for line in form.splitlines() if line.startswith("| ")]) == 12


def test_how_far_the_modes_went_apart():
    text = kl_table(plan_of_two(), results(), window=2)
    assert cells(text, "Policy Split")[1:] == ["0.400", "0.400", "0.250", "0.250 to 0.250", "0.400", "0.400 to 0.400"]
    assert "GRPO" not in text
    with_a_peak = results()
    for run in with_a_peak.runs["policy_split"].values():
        run.curves["policy_split/kl_high_normal"][:] = [0.1, 0.1, 62.0, 0.2]
    peak = kl_table(plan_of_two(), with_a_peak, window=3)
    assert cells(peak, "Policy Split")[1:4] == ["20.767", "0.200", "20.767"]  # one step moves the mean alone
    assert running(fmean, [1.0, 2.0, 3.0], 2) == [1.5, 2.5]
    assert running(fmean, [1.0, 2.0], 20) == [1.5]


def test_curves_have_the_evaluations_on_the_way():
    curves = {(c.variant, c.panel, c.mode): c for c in study_curves(results(), VARIANTS)}
    shown = curves["policy_split", "accuracy", "high_entropy"]
    assert shown.steps == [0, 2, 4]
    assert shown.mean == pytest.approx([0.3, 0.4, 0.725])
    assert (shown.low[2], shown.high[2]) == pytest.approx((0.7, 0.75))
    assert ("grpo", "distinct_correct_8", "normal") in curves
    assert ("grpo", "accuracy", "high_entropy") not in curves
