"""Div-n-gram and Div-BLEU: numbers worked out by hand, and where they stand in an evaluation."""

import pytest
import tiny

from policy_split.evaluation.diversity import div_bleu, div_ngram
from policy_split.evaluation.evaluate import evaluate_in_detail
from policy_split.evaluation.tables import evaluation_table

SAME = ["a b c d"] * 8
APART = [f"a{n} b{n} c{n} d{n}" for n in range(8)]


@pytest.mark.parametrize(
    ("texts", "ngram", "bleu"),
    [
        (SAME, 1 / 8, 0.0),
        (APART, 1.0, 1.0),
        (SAME[:4] + ["x y z w"] * 4, 2 / 8, 0.0),
        ([*SAME[:7], "x y z w"], 2 / 8, 1 / 8),
        ([""] * 8, 0.0, 0.0),
        ([*APART[:7], ""], 1.0, 1.0),
        (["a"] * 8, 1 / 8, 0.0),
        # 3/5, 2/4 and 1/3 of the n-grams match, of the two of 4 words none, which is smoothed to half of one
        (["a b c d e", "a b c x y"], (7 / 10 + 6 / 8 + 5 / 6 + 1) / 4, 1 - (3 / 5 * 2 / 4 * 1 / 3 * 1 / 4) ** (1 / 4)),
    ],
    ids=["same", "apart", "two", "one apart", "empty", "one empty", "a word", "smoothed"],
)
def test_worked_out_by_hand(texts, ngram, bleu):
    assert div_ngram(texts) == pytest.approx(ngram, abs=1e-12)
    assert div_bleu(texts) == pytest.approx(bleu, abs=1e-9)


def test_one_text_is_nothing_to_compare():
    with pytest.raises(ValueError, match="1 texts: expected two or more"):
        div_bleu(["a"])


def test_an_evaluation_of_eight_responses_has_both_with_intervals(tmp_path):
    config = tiny.config(tmp_path)
    evaluated = evaluate_in_detail(tiny.model(), tiny.tokenizer(), tiny.HELD_OUT[:3], tiny.reward, config, 17)
    for mode in ("normal", "high_entropy"):
        for name in ("div_ngram_8", "div_bleu_8"):
            values = evaluated["per_question"][f"{mode}/{name}"]
            assert len(values) == 3
            assert all(0 <= value <= 1 for value in values)
            measure = evaluated["modes"][mode][name]
            assert measure["mean"] == pytest.approx(sum(values) / 3)
            assert measure["low"] <= measure["mean"] <= measure["high"]
    assert "Div-BLEU of 8" in evaluation_table(evaluated)
    few = evaluate_in_detail(tiny.model(), tiny.tokenizer(), tiny.HELD_OUT[:1], tiny.reward, config, 4)
    assert "div_bleu_8" not in few["modes"]["normal"]
