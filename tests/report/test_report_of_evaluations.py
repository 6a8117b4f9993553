"""Evaluations in a report: their numbers, intervals and comparisons, whatever a file lacks."""

import pytest
from report_page import page_of
from run_folders import evaluation_of, whole_run


def test_numbers_of_an_evaluation(tmp_path):
    page = page_of([whole_run(tmp_path / "one")], tmp_path)
    text = page.section("evaluation")
    assert "0.5 [0.25, 0.75]" in text
    assert "0.125 [0.1, 0.2]" in text
    assert page.texts("td").count("12") == page.texts("td").count("8") == 2  # questions, samples; a row per mode
    words = page.texts("p", id="pass-at-k-words")[0]
    assert "normal: 0.5 at k 1, 0.875 at k 8." in words
    bands = [trace for trace in page.figures["pass-at-k"]["data"] if trace.get("fill") == "toself"]
    assert [band["y"] for band in bands] == 2 * [[0.75, 1.0, 0.875, 0.875, 0.5, 0.25]]


def test_evaluations_of_the_same_questions_are_compared_in_pairs(tmp_path):
    def evaluation(accuracies):
        scores = {f"{mode}/accuracy": accuracies for mode in ("normal", "high_entropy")}
        return evaluation_of() | {"questions": ["q1", "q2", "q3"], "per_question": scores}

    first = whole_run(tmp_path / "first", evaluation_json=evaluation([0.0, 0.25, 0.5]))
    second = whole_run(tmp_path / "second", evaluation_json=evaluation([0.5, 0.75, 1.0]))
    other = whole_run(tmp_path / "other", evaluation_json=evaluation_of())
    page = page_of([first, second, other], tmp_path)
    assert "second minus first, question by question" in page.texts("h3")
    # the same difference on each of three questions: 2 of the 8 sign patterns are as extreme
    assert "normal: accuracy\n0.5 [0.5, 0.5]\n0.25" in page.section("evaluation")
    assert any(text.startswith("Cannot be compared: ") for text in page.texts("p", class_="missing"))


def test_sizes_of_k_that_are_none_are_left_out(tmp_path):
    evaluation = evaluation_of()
    strange = {"0": 0.1, "-1": 0.1, "9" * 400: 0.1, "9" * 5000: 0.1, "x": 0.1, "\u0664": 0.1}
    evaluation["modes"]["normal"]["pass_at_k"] |= strange
    page = page_of([whole_run(tmp_path / "one", evaluation_json=evaluation)], tmp_path)
    assert page.figures["pass-at-k"]["layout"]["xaxis"]["tickvals"] == [1, 2, 8]


@pytest.mark.parametrize(
    "evaluation", [{}, {"modes": 3}, {"modes": {"normal": {"pass_at_k": [1], "accuracy": "high"}}}, {"num_samples": 1}]
)
def test_evaluations_that_lack_something_are_shown_as_far_as_they_go(tmp_path, evaluation):
    page = page_of([whole_run(tmp_path / "one", evaluation_json=evaluation)], tmp_path)
    assert page.section("evaluation")
    assert page.texts("p", class_="missing")
