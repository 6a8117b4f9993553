"""Two evaluations compared question by question, with numbers that can be worked out in the head."""

import pytest

from policy_split.evaluation.comparison import compare, summarize
from policy_split.evaluation.tables import comparison_table, evaluation_table

MEASURES = ("accuracy", "distinct_correct", "entropy", "mean_length", "truncated", "distinct_1", "distinct_2")
BOTH = ("normal", "high_entropy")


def evaluation(base=0.0, correct=(2, 0, 4), **changes):
    """Three questions, four responses; every measure of a question is its number plus `base`."""
    scores = {f"{mode}/{name}": [base, base + 1, base + 2] for mode in BOTH for name in (*MEASURES, "distinct_3")}
    scores |= {f"{mode}/correct": list(correct) for mode in BOTH}
    scores |= {"kl_high_normal": [base, base, base + 3], "kl_normal_high": [base] * 3} | changes
    details = {"questions": ["x", "y", "z"], "per_question": scores}
    return {"num_questions": 3, "num_samples": 4, "correct_reward": 1.0} | summarize(scores, 4) | details


def test_summary():
    summary = evaluation()
    normal = summary["modes"]["normal"]
    assert normal["accuracy"] == {"mean": 1.0, "low": 0.0, "high": 2.0}
    # 2, 0 and 4 right of 4
    assert {k: measure["mean"] for k, measure in normal["pass_at_k"].items()} == pytest.approx(
        {"1": 0.5, "2": (5 / 6 + 0 + 1) / 3, "4": 2 / 3}
    )
    assert summary["kl_high_normal"]["mean"] == pytest.approx(1.0)
    assert summary["kl_normal_high"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert "correct" not in normal


def test_the_same_evaluation_twice():
    comparison = compare(evaluation(), evaluation())
    assert (comparison["num_questions"], comparison["num_samples"]) == (3, 4)
    measures = [comparison["kl_high_normal"], comparison["kl_normal_high"]]
    for mode in BOTH:
        assert set(comparison["modes"][mode]) == {*MEASURES, "distinct_3", "pass_at_k"}
        measures += [m for name, m in comparison["modes"][mode].items() if name != "pass_at_k"]
        measures += comparison["modes"][mode]["pass_at_k"].values()
    for measure in measures:
        assert measure["mean"] == measure["against"]
        assert (measure["difference"], measure["low"], measure["high"], measure["p_value"]) == (0.0, 0.0, 0.0, 1.0)


def test_difference_is_first_minus_second():
    comparison = compare(evaluation(0.5, correct=(4, 4, 4)), evaluation())
    # three differences of one sign and size: 2 of 8 sign patterns reach their sum
    expected = {"mean": 1.5, "against": 1.0, "difference": 0.5, "low": 0.5, "high": 0.5, "p_value": 0.25}
    assert comparison["modes"]["high_entropy"]["entropy"] == pytest.approx(expected)
    # (4 - 2, 4 - 0, 4 - 4) of 4: two patterns of the two that count
    pass_at_1 = comparison["modes"]["normal"]["pass_at_k"]["1"]
    expected = {"mean": 1.0, "against": 0.5, "difference": 0.5, "low": 0.0, "high": 1.0, "p_value": 0.5}
    assert pass_at_1 == pytest.approx(expected)
    assert compare(evaluation(), evaluation(0.5))["kl_normal_high"]["difference"] == -0.5


def test_questions_are_paired():
    """A small gain on every question is seen although the questions differ far more among themselves."""
    spread = [float(10 * number) for number in range(12)]
    first, second = evaluation(), evaluation()
    for each, numbers in ((first, [number + 0.1 for number in spread]), (second, spread)):
        each["questions"] = list(range(12))
        each["per_question"] = {"normal/entropy": numbers}
    measure = compare(first, second)["modes"]["normal"]["entropy"]
    assert measure["p_value"] == 2 / 2**12
    assert (measure["low"], measure["high"]) == pytest.approx((0.1, 0.1))


def test_modes_of_different_names():
    first = evaluation(**{"high_entropy/entropy": [5.0, 5.0, 5.0]})
    comparison = compare(first, evaluation(), modes={"high_entropy": "normal"})
    assert list(comparison["modes"]) == ["high_entropy"]
    assert comparison["modes"]["high_entropy"]["entropy"]["difference"] == pytest.approx(4.0)
    assert "kl_high_normal" not in comparison
    both = compare(first, evaluation(), modes={"normal": "normal", "high_entropy": "normal"})
    assert list(both["modes"]) == ["normal", "high_entropy"]
    assert "kl_high_normal" not in both
    for modes in ({"loud": "normal"}, {"normal": "loud"}):
        with pytest.raises(ValueError, match="no mode 'loud', only normal, high_entropy"):
            compare(first, first, modes=modes)


def test_what_cannot_be_compared():
    for change, words in (
        ({"questions": ["x", "y"]}, "3 and 2 questions"),
        ({"questions": ["x", "w", "z"]}, "question 1 is 'y' and 'w'"),
        ({"num_samples": 8}, "4 and 8 responses per question"),
        ({"correct_reward": 0.5}, "correct from a reward of 1.0 and of 0.5 on"),
    ):
        with pytest.raises(ValueError, match=words):
            compare(evaluation(), evaluation() | change)
    for name in ("questions", "per_question", "num_samples"):
        without = {key: value for key, value in evaluation().items() if key != name}
        with pytest.raises(ValueError, match=f"the second evaluation has no '{name}'"):
            compare(evaluation(), without)


def cells(table):
    lines = table.splitlines()
    assert len({len(line) for line in lines}) == 1
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_tables():
    rows = cells(evaluation_table(evaluation()))
    assert rows[0] == ["mean [95 % interval]", "normal", "high-entropy"]
    assert rows[2] == ["accuracy", "1.000 [0.000, 2.000]", "1.000 [0.000, 2.000]"]
    assert [row[0] for row in rows[3:7]] == ["pass@1", "pass@2", "pass@4", "different correct answers of 4"]
    # each mode's KL is over its own responses
    assert rows[-1][1:] == ["0.0000 [0.0000, 0.0000]", "1.0000 [0.0000, 3.0000]"]
    rows = cells(comparison_table(compare(evaluation(0.5), evaluation()), "new", "old"))
    assert rows[0] == ["mode", "measure", "new", "old", "difference [95 % interval]", "p"]
    assert rows[2] == ["normal", "accuracy", "1.500", "1.000", "+0.500 [+0.500, +0.500]", "0.250"]
    assert len(rows) == 2 + 2 * (len(MEASURES) + 1 + 3 + 1)
