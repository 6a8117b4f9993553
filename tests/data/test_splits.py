"""PATH[:SPLIT]: which split is taken, what a colon means, and what is said where it is not plain."""

import json
from pathlib import Path

import datasets
import pytest
import tiny

from policy_split import PolicySplitTrainer
from policy_split.data import sources
from policy_split.data.datasets import as_prompts, check_apart, load_prompts
from policy_split.data.sources import split_of


def a_set(*prompts):
    return datasets.Dataset.from_list([{"prompt": prompt} for prompt in prompts])


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A saved dataset with these splits, each of a row that says its name and two more."""
    monkeypatch.chdir(tmp_path)

    def save(*names, folder="dd"):
        splits = {name: a_set(f"of {name}", "2", "3") for name in names}
        datasets.DatasetDict(splits).save_to_disk(folder)
        return folder

    return save


@pytest.mark.parametrize(
    ("names", "held_out", "expected"),
    [
        (["train", "test"], False, "train"),
        (["test", "validation", "train"], False, "train"),
        (["train", "test"], True, "test"),
        (["train", "validation"], True, "validation"),
        (["train", "validation", "test"], True, "test"),
        (["train", "dev"], True, "dev"),
        (["test"], True, "test"),
        (["train", "odd"], True, "odd"),
        (["odd"], True, "odd"),
    ],
)
def test_the_split_that_is_meant_where_none_is_named(saved, names, held_out, expected):
    assert load_prompts(saved(*names), held_out=held_out)["prompt"][0] == f"of {expected}"
    in_memory = datasets.DatasetDict({name: a_set(f"of {name}") for name in names})
    assert as_prompts(in_memory, held_out=held_out)["prompt"][0] == f"of {expected}"


def test_what_is_not_plain_is_asked(saved):
    with pytest.raises(ValueError, match=r"^dd has no split 'train'; it has test: name one, as in dd:test$"):
        load_prompts(saved("test"))
    folder = saved("train", "one", "two", folder="three")
    with pytest.raises(ValueError, match=r"^three: which split is held out\? it has train, one, two: .* three:one$"):
        load_prompts(folder, held_out=True)
    assert load_prompts("three:two", held_out=True)["prompt"][0] == "of two"
    with pytest.warns(UserWarning, match="only has no split but train: held-out questions are taken from it"):
        assert load_prompts(saved("train", folder="only"), held_out=True)["prompt"][0] == "of train"


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", ["of train", "2", "3"]),
        ("test", ["of test", "2", "3"]),
        ("train[:1]", ["of train"]),
        ("test[1:]", ["2", "3"]),
        ("train[-1:]", ["3"]),
        ("train[:1]+test[:1]", ["of train", "of test"]),
        ("train[:1]+train[2:]", ["of train", "3"]),
    ],
)
def test_a_split_behind_the_colon(saved, split, expected):
    folder = saved("train", "test")
    assert list(load_prompts(f"{folder}:{split}")["prompt"]) == expected
    assert list(load_prompts(f"./{folder}:{split}", held_out=True)["prompt"]) == expected
    assert list(load_prompts(folder, split=split)["prompt"]) == expected


def test_faults_of_splits(saved):
    folder = saved("train", "test")
    for name in ("dev", "train[:x]", "train[", "dev[:1]"):
        with pytest.raises((ValueError, FileNotFoundError), match=r"has no split|no such file"):
            load_prompts(f"{folder}:{name}")
    with pytest.raises(ValueError, match=r"^dd has no split 'dev'; it has train, test"):
        load_prompts("dd:dev")
    with pytest.raises(ValueError, match="dd:test names a split, and split='train' was given as well"):
        load_prompts("dd:test", split="train")
    with pytest.raises(ValueError, match="no rows"):
        load_prompts("dd:test[3:]")


@pytest.mark.parametrize("name", ["q.jsonl", "q.parquet", "plain"])
def test_a_set_without_splits_is_called_train_and_goes_for_anything(saved, name, recwarn):
    saved("train")
    Path("q.jsonl").write_text('{"prompt": "1"}\n{"prompt": "2"}\n')
    a_set("1", "2").to_parquet("q.parquet")
    a_set("1", "2").save_to_disk("plain")
    recwarn.clear()
    for asked in (name, f"{name}:train"):
        assert list(load_prompts(asked, held_out=True)["prompt"]) == ["1", "2"]
        assert list(load_prompts(asked)["prompt"]) == ["1", "2"]
    assert list(load_prompts(f"{name}:train[1:]")["prompt"]) == ["2"]
    assert not recwarn.list
    with pytest.raises(ValueError, match=f"^{name} has no split 'test'; it has train"):
        load_prompts(f"{name}:test")


def test_a_path_that_exists_wins_over_a_split(saved):
    folder = saved("train", "test")
    for name in ("dd:test", "C:q.jsonl", "a:b:test.jsonl"):
        Path(name).write_text('{"prompt": "mine"}\n')
    assert load_prompts("C:q.jsonl")["prompt"] == ["mine"]
    assert load_prompts("a:b:test.jsonl:train")["prompt"] == ["mine"]
    with pytest.raises(ValueError, match="cannot read"):
        load_prompts(f"{folder}:test")  # the file of that name


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("q.jsonl", ("q.jsonl", None)),
        ("q.jsonl:test", ("q.jsonl", "test")),
        ("someone/questions:validation[:10%]", ("someone/questions", "validation[:10%]")),
        ("C:\\data\\q.jsonl", ("C:\\data\\q.jsonl", None)),
        ("C:\\data\\q.jsonl:test", ("C:\\data\\q.jsonl", "test")),
        ("C:/data/q.jsonl", ("C:/data/q.jsonl", None)),
        ("C:q.jsonl", ("C:q.jsonl", None)),
        ("hf://datasets/a/b", ("hf://datasets/a/b", None)),
        ("reasoning-gym:countdown", ("reasoning-gym:countdown", None)),
        ("reasoning-gym:countdown?size=3", ("reasoning-gym:countdown?size=3", None)),
    ],
)
def test_what_a_colon_means(where, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert split_of(where) == expected


def test_hub_names(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    asked = []

    def load(name, split):
        asked.append((name, split))
        splits = datasets.DatasetDict(train=a_set("of train"), test=a_set("of test"))
        return splits if split is None else splits[split]

    monkeypatch.setattr(sources, "load_dataset", load)
    assert load_prompts("a/b")["prompt"][0] == "of train"
    assert load_prompts("a/b", held_out=True)["prompt"][0] == "of test"
    assert load_prompts("a/b:test")["prompt"][0] == "of test"
    assert load_prompts("a/b:train", held_out=True)["prompt"][0] == "of train"
    assert asked == [("a/b", None), ("a/b", None), ("a/b", "test"), ("a/b", "train")]


def test_a_folder_of_files_says_which(tmp_path):
    (tmp_path / "x.jsonl").write_text("")
    (tmp_path / "y.txt").write_text("")
    with pytest.raises(ValueError, match=r"not one that datasets' save_to_disk has written; it holds x\.jsonl, which"):
        load_prompts(tmp_path)


def test_questions_that_are_trained_on_are_a_warning(tmp_path):
    train = [{"prompt": "1"}, {"prompt": [{"role": "user", "content": "2"}]}, {"prompt": "3"}]
    with pytest.warns(UserWarning, match="2 of the 3 questions of eval_dataset are questions of train_dataset as well"):
        check_apart(as_prompts(train), as_prompts([*train[1:], {"prompt": "4", "answer": "1"}]))
    check_apart(as_prompts(train), as_prompts([{"prompt": "4"}, {"prompt": "2"}]))
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, tiny.QUESTIONS)))
    arguments = (tiny.model(), tiny.tokenizer(), tiny.reward, str(tmp_path / "q.jsonl"), tiny.config(tmp_path / "run"))
    with pytest.warns(UserWarning, match="6 of the 6 questions of eval_dataset"):
        PolicySplitTrainer(*arguments, eval_dataset=tiny.QUESTIONS)
