"""Samples in a report: both modes side by side, the entropy of every token."""

import math

from report_page import page_of
from run_folders import sample_of, write


def test_samples_stand_side_by_side_with_their_entropies(tmp_path):
    rows = [sample_of(step, mode) for step in range(10) for mode in ("normal", "high_entropy") for _ in range(9)]
    page = page_of([write(tmp_path / "one", samples_jsonl=rows)], tmp_path)
    steps = [e for e in page.all("details") if e["text"].startswith("step")]
    assert [e["text"][:6] for e in steps] == ["step 9", "step 7", "step 5", "step 4", "step 2", "step 0"]
    assert ["open" in e for e in steps] == [True] + [False] * 5
    assert "6 of the 10 steps with samples are shown." in page.texts("p")
    assert page.texts("h4")[:2] == ["normal mode", "high-entropy mode"]
    assert len(page.all("div", class_="sample")) == 6 * 2 * 4
    assert page.texts("div", class_="text prompt")[:2] == ["question for normal", "question for high_entropy"]
    first, second = page.all("span", class_="token")[:2]
    assert (first["text"], first["title"], first["style"]) == ("a b", "2.000 nats", "--h:0.60")
    assert (second["text"], second["title"], second["style"]) == ("<eos>", "0.500 nats", "--h:0.15")
    assert "reward 1, 2 tokens, mean entropy 1.250 nats" in page.texts("p")


def test_samples_that_are_long_or_lack_their_entropies(tmp_path):
    rows = [
        sample_of(1, "normal", tokens=["x"] * 450, entropy=[1.0] * 450),
        sample_of(1, "high_entropy", tokens=["u", "", "w"], entropy=[None, 1.0, math.nan], reward=None),
    ]
    page = page_of([write(tmp_path / "one", samples_jsonl=rows)], tmp_path)
    assert len(page.all("span", class_="token")) == 400 + 3
    assert "50 more tokens are not shown." in page.texts("p")
    assert "no reward, 3 tokens, mean entropy 1.000 nats" in page.texts("p")
    texts = [{"step": 1, "mode": "normal", "prompt": "p", "completion": "the text", "reward": 0.5}]
    page = page_of([write(tmp_path / "two", completions_jsonl=texts)], tmp_path)
    assert "the text" in page.texts("div", class_="text")
    assert "reward 0.5, no entropies" in page.texts("p")
    assert "the texts of completions.jsonl are shown, without entropies" in page.section("missing")
    assert "No sample of this mode at this step." in page.texts("p")
