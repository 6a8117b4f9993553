"""Tables that the code knows: `{{ settings }}` of a run and `{{ algorithms }}` of the trainer, in any page."""

import dataclasses
from collections.abc import Iterator

from policy_split.algorithms.table import ALGORITHMS
from policy_split.config import PolicySplitConfig

FIRST = {  # the first setting of each group, in the order of the class
    "output_dir": "The run",
    "model_dtype": "Model and memory",
    "max_steps": "Steps and batches",
    "max_prompt_length": "Text",
    "algorithm": "The method",
    "epsilon": "The loss",
    "learning_rate": "The optimizer",
    "logging_steps": "What is written",
}
LONG = 30  # characters of a default that stand in a column of their own


def on_page_markdown(markdown: str, **_: object) -> str:
    """mkdocs calls this with the text of each page."""
    for mark, lines in (("{{ settings }}", settings), ("{{ algorithms }}", algorithms)):
        if mark in markdown:
            markdown = markdown.replace(mark, "\n".join(lines()))
    return markdown


def settings() -> Iterator[str]:
    unknown = FIRST.keys() - {field.name for field in dataclasses.fields(PolicySplitConfig)}
    if unknown:
        raise ValueError(f"{__file__}: {sorted(unknown)} are no settings of PolicySplitConfig")
    for field in dataclasses.fields(PolicySplitConfig):
        if field.name in FIRST:
            yield from ("", f"### {FIRST[field.name]}", "", "| setting | default | |", "| --- | --- | --- |")
        default, meaning = f"`{field.default!r}`", _cell(field.metadata["help"])
        if len(default) > LONG:
            default, meaning = "", f"{meaning} Not given: {default}."
        yield f"| `{field.name}` | {default} | {meaning} |"


def algorithms() -> Iterator[str]:
    yield from ("| algorithm | from arXiv | changes in GRPO | settings |", "| --- | --- | --- | --- |")
    for name, algorithm in ALGORITHMS.items():
        if not algorithm.dual_mode:
            own = ", ".join(f"`{key}` {value}" for key, value in algorithm.settings.items())
            source = f"[{algorithm.paper}](https://arxiv.org/abs/{algorithm.paper})"
            yield f"| `{name}` | {source} | {', '.join(algorithm.changes) or 'nothing'} | {own} |"


def _cell(text: str) -> str:
    """A text in a table: outside backticks its own characters, none of them Markdown."""
    parts = " ".join(text.split()).split("`")
    parts[::2] = ["".join(f"\\{letter}" if letter in "|*_<" else letter for letter in part) for part in parts[::2]]
    return "`".join(parts)
