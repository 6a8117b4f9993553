"""What a reward receives is what the user's row held, from every source that can hold it."""

import json

import datasets
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from policy_split import PolicySplitTrainer
from policy_split.data.datasets import as_prompts, load_prompts
from policy_split.data.rows import Rows, rows_at, same
from policy_split.evaluation.evaluate import evaluate_modes

ROWS = [
    {"prompt": "1", "answer": 5, "info": {"tests": [1, 2.5, "3"]}},
    {"prompt": "2", "answer": 2.5, "info": {"regex": "x", "flags": {}}, "late": [None, {"a": True}]},
    {"prompt": "3", "answer": 10**30, "info": None},
    {"prompt": "4", "answer": "x", "info": [], "late": 0},
]
MISSING = {"late": None}


def seen_by_a_reward(data, tmp_path):
    """What a reward got for each question, by prompt, in two epochs of training and in an evaluation."""
    seen = []

    def reward(prompts, completions, completion_ids, **columns):
        for number, prompt in enumerate(prompts):
            row = {name: values[number] for name, values in columns.items()}
            seen.append((prompt, repr(row)))
            if isinstance(row.get("info"), dict):
                row["info"].clear()  # what a reward does to its arguments is gone in the next step
        return [0.0] * len(completions)

    config = tiny.config(tmp_path / "run", prompts_per_step=2, num_generations=1, max_steps=4, max_completion_length=2)
    trainer = PolicySplitTrainer(tiny.model(), tiny.tokenizer(), reward, data, config)
    trainer.train()
    evaluate_modes(trainer.policy.bare, trainer.tokenizer, data, reward, config, num_samples=1)
    return seen


@pytest.mark.parametrize("source", ["list", "jsonl", "json"])
def test_rows_reach_the_reward_as_they_are(source, tmp_path):
    path = tmp_path / f"q.{source}"
    path.write_text(json.dumps(ROWS) if source == "json" else "\n".join(map(json.dumps, ROWS)))
    seen = seen_by_a_reward(ROWS if source == "list" else str(path), tmp_path)
    names = ("answer", "info", "late")
    expected = {row["prompt"]: repr({name: row.get(name) for name in names}) for row in ROWS}
    assert len(seen) == 3 * 2 * len(ROWS)
    assert set(seen) == set(expected.items())


def test_storage_of_arrow_gives_what_it_holds(tmp_path):
    rows = [{"prompt": "1", "n": 2**62, "t": "5", "f": 5.0}, {"prompt": "2", "n": None, "t": "", "f": None}]
    dataset = datasets.Dataset.from_list(rows)
    dataset.to_parquet(tmp_path / "q.parquet")
    dataset.save_to_disk(tmp_path / "saved")
    for data in (dataset, tmp_path / "q.parquet", tmp_path / "saved"):
        questions = as_prompts(data)
        assert all(map(same, [questions[number] for number in range(2)], rows))


def test_rows_of_a_step_are_those_that_single_reads_give():
    rows = [{"prompt": str(n), "n": n, "of": [{"a": n}], "late": None if n else {"b": [1.5]}} for n in range(5)]
    plain = datasets.Dataset.from_list(rows)
    plain.set_format(columns=["n", "prompt"])
    for data in (Rows(rows), datasets.Dataset.from_list(rows), plain, plain.with_format("numpy")):
        for numbers in ([3, 1, 3], [4], []):
            expected = [data[number] for number in numbers]
            found = rows_at(data, numbers)
            assert found == expected
            kinds = [[(name, type(value)) for name, value in row.items()] for row in (*found, *expected)]
            assert kinds[: len(found)] == kinds[len(found) :]


def test_rows_behave_as_a_set_of_questions():
    rows = Rows(ROWS, "mine")
    assert rows.column_names == ["prompt", "answer", "info", "late"]
    assert len(rows) == 4
    assert rows[0] == ROWS[0] | MISSING
    assert rows[-1] == ROWS[3]
    assert rows["late"] == [None, [None, {"a": True}], None, 0]
    assert rows.to_list() == ROWS
    assert [row["prompt"] for row in rows.select([2, 0])] == ["3", "1"]
    with pytest.raises(KeyError, match="mine has no column 'other'; its columns are prompt, answer"):
        rows["other"]
    with pytest.raises(IndexError):
        rows[4]


def test_the_users_rows_and_ours_are_apart():
    mine = [{"prompt": "1", "info": {"a": [1]}}]
    rows = Rows(mine)
    mine[0]["info"]["a"].append(2)
    rows[0]["info"]["a"].append(3)
    rows["info"][0]["a"].append(4)
    rows.to_list()[0]["info"]["a"].append(5)
    assert rows[0] == {"prompt": "1", "info": {"a": [1]}}


def test_objects_of_no_storage_format_pass():
    thing = object()
    assert as_prompts([{"prompt": "1", "thing": thing, "call": len}])[0]["thing"] is thing


def test_what_is_no_row():
    with pytest.raises(TypeError, match="train_dataset, row 1: a str, expected a dict with a key 'prompt'"):
        as_prompts([{"prompt": "1"}, "2"], "train_dataset")
    with pytest.raises(TypeError, match="the key 5 is no text"):
        as_prompts([{"prompt": "1", 5: "a"}])


def test_a_dataset_of_rows(tmp_path):
    good = Rows([{"prompt": "1", "n": 5}, {"prompt": "2", "n": 7, "late": [1.5]}])
    assert good.to_dataset().to_list() == [
        {"prompt": "1", "n": 5, "late": None},
        {"prompt": "2", "n": 7, "late": [1.5]},
    ]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([5, 2.5], r"line 3: a Dataset cannot hold column 'a', 5 \(int\): it would become 5\.0 \(float\)"),
        ([5, "x"], r"line 4: a Dataset cannot hold column 'a', 'x' \(str\) beside 5 \(int\) of .*line 3"),
        ([1, 10**30], r"line 4: a Dataset cannot hold column 'a', 10{30} \(int\) beside 1 \(int\) of .*line 3"),
        ([10**30, 1], r"line 3: a Dataset cannot hold column 'a', 10{30} \(int\)$"),
        ([{"b": 1}, {"c": 2}], r"line 3: .* \{'b': 1\} \(dict\): it would become \{'b': 1, 'c': None\} \(dict\)"),
        ([[1], [2, "x"]], r"line 4: .* \[2, 'x'\] \(list\) beside \[1\] \(list\) of .*line 3"),
        ([True, 5], r"line 4: .* 5 \(int\) beside True \(bool\) of .*line 3"),
        ([{"b": 1}, [2]], r"line 4: .* \[2\] \(list\) beside \{'b': 1\} \(dict\)"),
    ],
)
def test_what_a_dataset_cannot_hold_is_named_with_both_values(tmp_path, values, expected):
    path = tmp_path / "q.jsonl"
    path.write_text("\n\n" + "\n".join(json.dumps({"prompt": "1", "a": value}) for value in values))
    with pytest.raises(ValueError, match=rf"q\.jsonl, {expected}"):
        load_prompts(path).to_dataset()


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)


@given(st.lists(st.dictionaries(st.sampled_from("abc"), SCALARS | st.lists(SCALARS, max_size=2)), max_size=4))
def test_a_dataset_holds_the_rows_or_says_so(rows):
    rows = Rows([{"prompt": "1"} | row for row in rows])
    said = ""
    try:
        made = rows.to_dataset().to_list()
    except ValueError as error:
        said, made = str(error), list(rows)
    assert all(map(same, made, rows))
    assert not said or "a Dataset cannot hold column" in said
