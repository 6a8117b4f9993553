"""Docstrings for the site: blocks that `::` announces as Python; shapes, errors and sources as paragraphs."""

import inspect
import re
from typing import Any

import griffe

BLOCK = re.compile(r"::\n\n((?:    .*\n|\n)+?)(?=\S|\Z)")
PARAGRAPHS = re.compile(r"\n(?=(?:Shapes|Returns|Raises|Source|Units|[A-Z]\w*Error(?:, [A-Z]\w*Error)*:)\b)")


def as_markdown(text: str) -> str:
    """A docstring as the site shows it."""
    fenced = BLOCK.sub(lambda found: f":\n\n```python\n{inspect.cleandoc(found[1])}\n```\n\n", f"{text}\n")
    return PARAGRAPHS.sub("\n\n", fenced).strip()


class Docstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
