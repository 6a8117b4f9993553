"""Writes docs/api.md: every public name with its signature and docstring.

python scripts/api_reference.py            writes it
python scripts/api_reference.py --check    1 if the file is another
"""

import dataclasses
import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
# module -> its public names; None: those of __all__, or else what it defines
MODULES = {
    "policy_split": None,
    "policy_split.advantages": ("bonus_statistics", "BonusStatistics"),
    "policy_split.modes": ("encode_prompt", "with_system_prompt"),
    "policy_split.countdown": ("Countdown", "countdown_reward"),
    "policy_split.isolated": None,
    "policy_split.math_reward": ("math_reward",),
    "policy_split.drop_in.trl": None,
    "policy_split.drop_in.verl": None,
    "policy_split.integrations.trl": None,
    "policy_split.integrations.verl_rows": ("policy_split_advantages",),
}


def page() -> str:
    """The whole page."""
    parts = [
        "# API",
        "Written from the docstrings by `python scripts/api_reference.py`. Entropies and KLs are in nats.",
    ]
    for name, chosen in MODULES.items():
        module = importlib.import_module(name)
        parts.append(f"## {name}")
        parts.append(_cleaned(module.__doc__ or ""))
        for public in sorted(chosen or _public(module), key=str.lower):
            parts += _entry(public, getattr(module, public))
    return "\n\n".join(part for part in parts if part) + "\n"


def _public(module: Any) -> list[str]:
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and inspect.isroutine(value) and value.__module__ == module.__name__
    ]


def _entry(name: str, value: Any) -> list[str]:
    if not callable(value):
        return [f"### {name}", f"`{value!r}`"]
    parts = [f"### {name}"]
    if not dataclasses.is_dataclass(value):
        parts.append(f"```python\n{name}{_signature(value)}\n```")
    parts.append(_cleaned(inspect.getdoc(value) or ""))
    if dataclasses.is_dataclass(value):
        parts.append(_fields(value))
    elif isinstance(value, type) and issubclass(value, tuple):
        parts.append(", ".join(f"`{field}`" for field in value._fields))
    elif isinstance(value, type):
        for method, function in vars(value).items():
            if inspect.isfunction(function) and not method.startswith("_") and function.__doc__:
                parts += [f"#### {name}.{method}", f"```python\n{method}{_signature(function)}\n```"]
                parts.append(_cleaned(inspect.getdoc(function) or ""))
    return parts


def _signature(value: Any) -> str:
    """One argument a line where it is long."""
    try:
        signature = inspect.signature(value)
    except ValueError:
        return "(...)"
    text = _named(str(signature))
    if len(text) <= 100:
        return text
    lines, keyword = [], False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword:
            lines.append("    *,")
            keyword = True
        lines.append(f"    {_named(str(parameter))},")
    returns = signature.return_annotation
    arrow = "" if returns is signature.empty else f" -> {_named(inspect.formatannotation(returns))}"
    return "(\n" + "\n".join(lines) + f"\n){arrow}"


def _named(text: str) -> str:
    """Without the modules of annotations, and without addresses of objects."""
    text = re.sub(r"\b(?:[a-z_]+\.)+([A-Z]\w+)", r"\1", text)
    return re.sub(r" at 0x[0-9a-f]+", "", text).replace("'", '"')


def _fields(value: Any) -> str:
    """A table of the fields that the class itself adds."""
    inherited = {field.name for base in value.__mro__[1:] if dataclasses.is_dataclass(base) for field in _of(base)}
    rows = ["| field | default | |", "| --- | --- | --- |"]
    for field in _of(value):
        if field.name not in inherited:
            default = "" if field.default is dataclasses.MISSING else f"`{field.default!r}`"
            meaning = " ".join(str(field.metadata.get("help", "")).split()).replace("|", "\\|")
            rows.append(f"| `{field.name}` | {default} | {meaning} |")
    return "\n".join(rows)


def _of(value: Any) -> tuple[dataclasses.Field, ...]:
    return dataclasses.fields(value)


def _cleaned(text: str) -> str:
    """Indented literal blocks, announced by `::`, as fenced ones."""
    text = inspect.cleandoc(text)
    fenced = re.sub(
        r"::\n\n((?:    .*\n|\n)+?)(?=\S|\Z)",
        lambda found: ":\n\n```python\n" + inspect.cleandoc(found[1]) + "\n```\n\n",
        text + "\n",
    )
    return fenced.strip()


def main(arguments: list[str]) -> int:
    text = page()
    if "--check" in arguments:
        same = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
        print(f"{PAGE}: " + ("up to date" if same else "not up to date; run python scripts/api_reference.py"))
        return 0 if same else 1
    PAGE.write_text(text, encoding="utf-8")
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
