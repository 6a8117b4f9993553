"""The settings of a configuration as tables: `{{ settings }}` in a page, from the metadata of PolicySplitConfig."""

import dataclasses
from collections.abc import Iterator

from policy_split.config import PolicySplitConfig

MARK = "{{ settings }}"
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


def on_page_markdown(markdown: str, **_: object) -> str:
    """mkdocs calls this with the text of each page."""
    return markdown.replace(MARK, "\n".join(_lines())) if MARK in markdown else markdown


def _lines() -> Iterator[str]:
    unknown = FIRST.keys() - {field.name for field in dataclasses.fields(PolicySplitConfig)}
    if unknown:
        raise ValueError(f"{__file__}: {sorted(unknown)} are no settings of PolicySplitConfig")
    for field in dataclasses.fields(PolicySplitConfig):
        if field.name in FIRST:
            yield from ("", f"### {FIRST[field.name]}", "", "| setting | default | |", "| --- | --- | --- |")
        meaning = " ".join(field.metadata["help"].split()).replace("|", "\\|")
        yield f"| `{field.name}` | `{field.default!r}` | {meaning} |"
