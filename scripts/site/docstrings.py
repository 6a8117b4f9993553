"""Docstrings for the site: `::` blocks as Python, a paragraph where a sentence ends its line, fields with comments."""

import inspect
import re
from typing import Any

import griffe

BLOCK = re.compile(r"::\n\n((?:    .*\n|\n)+?)(?=\S|\Z)")
PARAGRAPH = re.compile(r"(?<=[^\n.][.:])\n(?=[A-Z`])")
FIELD = re.compile(r"^    (\w+): [^#\n]*#\s*(.+)$", re.MULTILINE)


def as_markdown(text: str) -> str:
    """A docstring as the site shows it."""
    parts = BLOCK.split(f"{text}\n")  # text, block, text, ...
    parts[::2] = [_plain(PARAGRAPH.sub("\n\n", part)) for part in parts[::2]]
    parts[1::2] = [f":\n\n```python\n{inspect.cleandoc(block)}\n```\n\n" for block in parts[1::2]]
    return "".join(parts).strip()


def _plain(text: str) -> str:
    """4*P*n is a product, not emphasis."""
    parts = text.split("`")
    parts[::2] = [part.replace("*", "\\*") for part in parts[::2]]
    return "`".join(parts)


class Docstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """A named tuple says what its fields are in comments, which no docstring has."""
        if cls.docstring is not None and "NamedTuple" in map(str, cls.bases):
            fields = [f"- `{name}`: {meaning}" for name, meaning in FIELD.findall(cls.source)]
            cls.docstring.value = "\n".join([cls.docstring.value, "", *fields])
