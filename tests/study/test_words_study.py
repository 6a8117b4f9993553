"""The study on the words task: one model as it is, the test words for every run, and what its document says."""

import json
from dataclasses import replace

import pytest
import words_plan
from datasets import Dataset

from policy_split.commands import study as command
from policy_split.commands.main import main
from policy_split.study import runner
from policy_split.study.results import read_results
from policy_split.words.word_list import Word


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return words_plan.plan(words_plan.save_model(tmp_path_factory.mktemp("words") / "model"))


@pytest.fixture(scope="module")
def done(plan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "runs"
    runner.run_study(plan, folder)
    return folder


def test_every_run_writes_with_the_same_words_that_training_has_not(done):
    start = done / "warm-start"
    questions, train = (Dataset.load_from_disk(start / name) for name in ("questions", "train"))
    assert (len(questions), len(train)) == (3, 6)
    assert {Word("noun", word, ()).split for row in questions["words"] for word in row} == {"test"}
    assert {Word("noun", word, ()).split for row in train["words"] for word in row} == {"train"}
    before = json.loads((start / "evaluation.json").read_text())
    for path in done.glob("*-1/evaluation.json"):
        assert json.loads(path.read_text())["questions"] == before["questions"] == list(questions["prompt"])
    assert len(list(done.glob("*-1/evaluation.json"))) == 2


def test_the_start_is_the_model_as_it_is(plan, done):
    given, kept = (folder / "model.safetensors" for folder in (type(done)(plan.size.model), done / "warm-start/model"))
    assert given.read_bytes() == kept.read_bytes()


def test_a_finished_run_is_not_repeated_and_another_model_is_refused(plan, done):
    stamps = {path: path.stat().st_mtime_ns for path in done.rglob("*")}
    runner.run_study(plan, done)
    assert {path: path.stat().st_mtime_ns for path in done.rglob("*")} == stamps
    with pytest.raises(ValueError, match="warm-start holds a run with other size; choose another --output"):
        runner.run_study(replace(plan, size=replace(plan.size, model="other")), done)


def test_the_command_writes_the_document(plan, done, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(command.PLANS, "words", plan)
    target = tmp_path / "study.md"
    assert main(["study", "--plan", "words", "--output", str(done), "--document", str(target)]) == 0
    text = target.read_text()
    assert capsys.readouterr().out.startswith(text)
    assert text.startswith("# The comparison on sentences\n")
    diversity = read_results(plan, done).values("policy_split", "div_bleu_8", "high_entropy")
    row = next(line for line in text.splitlines() if line.startswith("| ... and of its own normal mode in Div-BLEU"))
    assert row.split("|")[2].strip() == f"{diversity[0]:.3f}"
    for words in (
        "| before training ",
        "One short sentence that uses 3 given words, by model;",
        "over 3 steps",
        "| tokens ",
    ):
        assert words in text
    curves = json.loads((tmp_path / "data" / "study.json").read_text())["curves"]
    assert curves[0]["steps"] == [2]
