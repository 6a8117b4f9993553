"""Questions: every source, every fault, and the order in which they are asked."""

import json

import datasets
import pytest
import tiny

from policy_split.data import sources
from policy_split.data.datasets import as_prompts, encode_modes, load_prompts, longest_prompt, question_indices

ROWS = [{"prompt": "1", "answer": "a"}, {"prompt": "2", "answer": "b"}]
CHATS = [{"prompt": [{"role": "user", "content": "1"}]}]


@pytest.fixture
def source(request, tmp_path):
    dataset = datasets.Dataset.from_list(ROWS)
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    if request.param == "jsonl":
        (tmp_path / "x.jsonl").write_text(lines)
        return tmp_path / "x.jsonl"
    if request.param == "json":
        (tmp_path / "x.json").write_text(json.dumps(ROWS))
        return tmp_path / "x.json"
    if request.param == "parquet":
        dataset.to_parquet(tmp_path / "x.parquet")
        return tmp_path / "x.parquet"
    (datasets.DatasetDict(train=dataset) if request.param == "splits" else dataset).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("source", ["jsonl", "json", "parquet", "folder", "splits"], indirect=True)
def test_every_source_gives_the_same_rows(source):
    assert load_prompts(source).to_list() == ROWS


def test_hub_name_goes_to_load_dataset(monkeypatch):
    asked = []
    monkeypatch.setattr(
        sources, "load_dataset", lambda name, split: asked.append((name, split)) or datasets.Dataset.from_list(ROWS)
    )
    assert len(load_prompts("someone/questions", split="test")) == 2
    assert asked == [("someone/questions", "test")]


def test_hub_failure_says_both_things(monkeypatch):
    def fail(name, split):
        raise ConnectionError("offline")

    monkeypatch.setattr(sources, "load_dataset", fail)
    with pytest.raises(FileNotFoundError, match=r"no such file or folder.*ConnectionError: offline"):
        load_prompts("someone/questions")


def test_faults_of_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_prompts(tmp_path / "missing.jsonl")
    (tmp_path / "x.csv").write_text("prompt\n1\n")
    with pytest.raises(ValueError, match=r"cannot read \.csv"):
        load_prompts(tmp_path / "x.csv")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "1"}\n{"prompt": ')
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 2, column 12: Expecting value$"):
        load_prompts(tmp_path / "bad.jsonl")
    (tmp_path / "bad.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match="cannot be read"):
        load_prompts(tmp_path / "bad.parquet")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match="no rows"):
        load_prompts(tmp_path / "empty.jsonl")
    with pytest.raises(ValueError, match="save_to_disk"):
        load_prompts(tmp_path)


def test_missing_split(tmp_path):
    datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="no split 'test'; it has train"):
        load_prompts(tmp_path / "saved", split="test")


def test_faults_of_rows():
    with pytest.raises(ValueError, match="no column 'prompt'; its columns are question, answer"):
        as_prompts([{"question": "1", "answer": "2"}])
    with pytest.raises(ValueError, match="no rows"):
        as_prompts([])
    with pytest.raises(ValueError, match="row 1: a prompt must be text"):
        as_prompts([{"prompt": "1"}, {"prompt": None}])
    for name in ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"):
        with pytest.raises(ValueError, match=f"column '{name}'"):
            as_prompts([{"prompt": "1", name: "2"}])
    with pytest.raises(TypeError, match="got int"):
        as_prompts(3)


def test_chat_rows_pass():
    assert as_prompts(CHATS).to_list() == CHATS


def test_long_prompt_names_sample_mode_and_lengths(tmp_path):
    config = tiny.config(tmp_path, max_prompt_length=3)
    assert longest_prompt(tiny.tokenizer(), as_prompts([{"prompt": "1 2"}]), config) == 3
    expected = "train_dataset, row 1: the high_entropy prompt has 4 tokens, more than max_prompt_length=3"
    with pytest.raises(ValueError, match=expected):
        longest_prompt(tiny.tokenizer(), as_prompts([{"prompt": "1"}, {"prompt": "1 2 3"}]), config)


def test_modes_that_read_the_same(tmp_path):
    tokenizer = tiny.tokenizer(chat=True)
    tokenizer.chat_template = "{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(ValueError, match="here: both modes read the same tokens"):
        encode_modes(tokenizer, "1", tiny.config(tmp_path), "here")


def test_every_question_once_per_epoch():
    asked = [i for step in range(5) for i in question_indices(10, seed=1, step=step, prompts_per_step=4)]
    assert sorted(asked[:10]) == sorted(asked[10:]) == list(range(10))
    assert asked[:10] != asked[10:]
    assert asked[4:8] == question_indices(10, seed=1, step=1, prompts_per_step=4)
    assert asked[:4] != question_indices(10, seed=2, step=0, prompts_per_step=4)


def test_more_questions_per_step_than_there_are():
    assert sorted(question_indices(2, seed=0, step=0, prompts_per_step=4)) == [0, 0, 1, 1]
