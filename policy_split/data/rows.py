"""Questions as rows of Python objects: no storage format comes between the user's rows and the reward."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, overload

from datasets import Dataset


class Questions(Protocol):
    """What is needed of a set of questions: `Rows`, and datasets' Dataset as it is."""

    @property
    def column_names(self) -> list[str]: ...

    def __len__(self) -> int: ...

    @overload
    def __getitem__(self, key: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, key: str) -> Sequence[Any]: ...

    def select(self, numbers: Iterable[int], /) -> "Questions": ...


class Rows:
    """`Rows([{"prompt": "1", "answer": 5}, ...])`: each row as it was, the column names those of all rows.

    `rows[3]` has every column, None where the row lacks it; `rows["answer"]` is a list. Lists and dicts are copied when
    they come in and when they are given out: what a reward does to them is gone in the next step, as it is in a run
    that was resumed. Raises TypeError for a row that is no mapping or has a key that is no text.
    """

    def __init__(
        self, rows: Iterable[Mapping[str, Any]], name: str = "the dataset", lines: Sequence[int] | None = None
    ):
        self.name, self.lines = name, lines
        self._rows = []
        for number, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise TypeError(f"{self.where(number)}: a {type(row).__name__}, expected a dict with a key 'prompt'")
            self._rows.append({key: copied(value) for key, value in row.items()})
        names = dict.fromkeys(key for row in self._rows for key in row)
        strange = next((key for key in names if not isinstance(key, str)), None)
        if strange is not None:
            raise TypeError(f"{name}: the key {strange!r} is no text, and a reward function could not be given it")
        self.column_names = list(names)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[number] for number in range(len(self)))

    @overload
    def __getitem__(self, key: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, key: str) -> list[Any]: ...

    def __getitem__(self, key: int | str) -> dict[str, Any] | list[Any]:
        if isinstance(key, str):
            if key not in self.column_names:
                raise KeyError(f"{self.name} has no column {key!r}; its columns are {', '.join(self.column_names)}")
            return [copied(row.get(key)) for row in self._rows]
        row = self._rows[key]
        return {name: copied(row.get(name)) for name in self.column_names}

    def where(self, number: int) -> str:
        """The row in words, for messages."""
        return f"{self.name}, row {number}" if self.lines is None else f"{self.name}, line {self.lines[number]}"

    def select(self, numbers: Iterable[int]) -> "Rows":
        numbers = list(numbers)
        lines = None if self.lines is None else [self.lines[number] for number in numbers]
        return Rows((self._rows[number] for number in numbers), self.name, lines)

    def to_list(self) -> list[dict[str, Any]]:
        """The rows as they came, without the columns that they lack."""
        return [copied(row) for row in self._rows]

    def to_dataset(self) -> Dataset:
        """The same as a Dataset, for other frameworks and storage; a column that a row lacks is None there.

        ValueError where Arrow's columns cannot hold what a row has: it names the row, the column and both values.
        """
        columns = {}
        for name in self.column_names:
            values = self[name]
            if not _fits(values):
                raise self._misfit(name, values)
            columns[name] = values
        made = Dataset.from_dict(columns)
        for name, values in columns.items():
            for number, (given, held) in enumerate(zip(values, made[name], strict=True)):
                if not same(given, held):
                    raise ValueError(f"{self._what(name, number, given)}: it would become {_described(held)}")
        return made

    def _misfit(self, name: str, values: Sequence[Any]) -> ValueError:
        """Of the first row whose value is of another type than one before it; else of the first that fails alone."""
        first = next((number for number, value in enumerate(values) if value is not None), 0)
        for number, value in enumerate(values):
            if value is not None and type(value) is not type(values[first]):
                beside = f"beside {_described(values[first])} of {self.where(first)}"
                return ValueError(f"{self._what(name, number, value)} {beside}: a column has one type there")
        number = bisect_left(range(len(values)), True, key=lambda last: not _fits(values[: last + 1]))
        beside = "" if number == first else f" beside {_described(values[first])} of {self.where(first)}"
        return ValueError(f"{self._what(name, number, values[number])}{beside}")

    def _what(self, name: str, number: int, value: Any) -> str:
        return f"{self.where(number)}: a Dataset cannot hold column {name!r}, {_described(value)}"


def place(questions: Questions, number: int, name: str) -> str:
    """A row of questions in words: of a file by its line."""
    if isinstance(questions, Rows) and questions.lines is not None:
        return questions.where(number)
    return f"{name}, row {number}"


def rows_at(questions: Questions, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """[questions[number] for number in numbers], which a Dataset of plain Python objects reads at once."""
    if isinstance(questions, Dataset) and questions.format["type"] is None:
        columns = questions[list(numbers)]
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [questions[number] for number in numbers]


def same(a: Any, b: Any) -> bool:
    """Equal, and of the same types all the way down; NaN is the same as NaN."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Mapping):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b or (a != a and b != b))


def copied(value: Any) -> Any:
    """Lists, tuples and dicts anew, all the way down; everything else is handed on."""
    if type(value) is dict:
        return {key: copied(inner) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(copied, value))
    return value


def _fits(values: Sequence[Any]) -> bool:
    try:
        Dataset.from_dict({"column": values})
    except Exception:  # Arrow's own, OverflowError, TypeError, ...
        return False
    return True


def _described(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 80 else text[:80] + '...'} ({type(value).__name__})"
