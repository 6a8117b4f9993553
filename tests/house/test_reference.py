"""The reference of the site names every public name, and every public docstring says what a caller has to know."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

import policy_split

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
REFERRED = re.findall(r"^::: (\S+)$", PAGE, re.MULTILINE)
OF_A_MODULE = ("policy_split.drop_in.trl", "policy_split.drop_in.verl")


def public(module: str) -> set[str]:
    functions = inspect.getmembers(importlib.import_module(module), inspect.isfunction)
    return {name for name, value in functions if value.__module__ == module and not name.startswith("_")}


def test_every_public_name_is_in_the_reference():
    names = {f"policy_split.{name}" for name in policy_split.__all__}
    names |= {f"{module}.{name}" for module in OF_A_MODULE for name in public(module)}
    names |= {f"policy_split.integrations.trl.{name}" for name in trl_names()}
    assert names - set(REFERRED) == set()
    assert len(REFERRED) == len(set(REFERRED))


def trl_names() -> list[str]:
    """Read, not imported: TRL need not be there."""
    text = (Path(policy_split.__file__).parent / "integrations" / "trl" / "__init__.py").read_text()
    return re.findall(r'"(\w+)"', text[text.index("__all__") :])


@pytest.mark.parametrize("name", policy_split.__all__)
def test_every_public_name_says_what_it_does(name):
    value = getattr(policy_split, name)
    said = inspect.getdoc(value) or ""
    assert re.match(r"\S.*[.:;]", said), f"policy_split.{name} has no sentence"
    assert not said.startswith(f"{name}("), f"policy_split.{name} has the docstring that its class makes"
    tensors = inspect.isfunction(value) and "Tensor" in str(inspect.signature(value))
    tensors |= isinstance(value, type) and issubclass(value, tuple)
    if tensors:
        assert re.search(r"\(\.\.\.|\([BNV4]\b", said), f"policy_split.{name} does not say which shapes"
    if tensors and inspect.isfunction(value):
        assert "Error" in said, f"policy_split.{name} does not say what it raises"
