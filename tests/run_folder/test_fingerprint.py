"""The content of a run's questions: read many rows at a time, the same sum as row by row."""

import pytest
from datasets import Dataset

from policy_split.run_folder import fingerprint

ROWS = [
    {
        "prompt": [{"role": "user", "content": f"question {i}"}],
        "wanted": None if i % 3 else i / 7,
        "many": [i] * (i % 4),
    }
    for i in range(10)
]


@pytest.mark.parametrize("at_once", [1, 3, 10, 1000])
def test_many_rows_at_once_are_the_same_rows(monkeypatch, at_once):
    monkeypatch.setattr(fingerprint, "AT_ONCE", at_once)
    questions = Dataset.from_list(ROWS)
    for kept in (questions, questions.select([7, 2, 2, 9]), questions.with_format("numpy"), ROWS):
        rows = [kept[row] for row in range(len(kept))]
        assert fingerprint._rows_sum(fingerprint._rows(kept)) == fingerprint._rows_sum(rows)


def test_any_other_row_is_another_sum():
    sums = {fingerprint._rows_sum(fingerprint._rows(Dataset.from_list([*ROWS, row]))) for row in ROWS}
    sums |= {fingerprint._rows_sum(fingerprint._rows(Dataset.from_list(rows))) for rows in (ROWS, ROWS[::-1], ROWS[1:])}
    assert len(sums) == len(ROWS) + 3
