"""What the site is made with: docstrings as Markdown, formulas as MathML, diagrams as SVG, tables of the settings."""

import dataclasses

import griffe
import pytest
from pymdownx.superfences import SuperFencesException

from policy_split.algorithms.table import ALGORITHMS
from policy_split.config import PolicySplitConfig
from scripts.site import diagrams, docstrings, formulas, tables


def test_a_docstring():
    said = "Sum.\n\nThe same as::\n\n    x = a * b\n    y = x\n\nShapes: (4*P*n, T), `a * b`.\nRaises ValueError.\n"
    assert docstrings.as_markdown(said) == (
        "Sum.\n\nThe same as:\n\n```python\nx = a * b\ny = x\n```\n\n"
        "Shapes: (4\\*P\\*n, T), `a * b`.\n\nRaises ValueError."
    )
    assert docstrings.as_markdown("One line that\ngoes on.\nlower case goes on") == (
        "One line that\ngoes on.\nlower case goes on"
    )


def test_the_fields_of_a_named_tuple(tmp_path):
    fields = "    a: Tensor  # (N,) nats\n    b: Tensor\n    c: int = 1  # count\n"
    (tmp_path / "pairs.py").write_text(f'class Pair(NamedTuple):\n    """Two."""\n\n{fields}')
    extensions = griffe.load_extensions(docstrings.Docstrings)
    module = griffe.load("pairs", search_paths=[tmp_path], extensions=extensions)
    assert module["Pair"].docstring.value == "Two.\n\n- `a`: (N,) nats\n- `c`: count"


def test_formulas():
    page = (
        '<p><span class="arithmatex">\\(a_1 &lt; b\\)</span> and <div class="arithmatex">\\[\\frac{x}{y}\\]</div></p>'
    )
    drawn = formulas.on_page_content(page)
    assert drawn.count("<math ") == 2
    assert 'display="inline"><mrow><msub><mi>a</mi><mn>1</mn></msub><mo>&lt;</mo><mi>b</mi>' in drawn.replace(
        "&#x0003C;", "&lt;"
    )
    assert '<div class="formula"><math' in drawn
    assert "<mfrac>" in drawn
    assert formulas.on_page_content("<code>$x$</code>") == "<code>$x$</code>"


def test_diagrams():
    drawn = diagrams.drawn("digraph { a -> b [label=then] }", "dot", "diagram", {}, None)
    assert drawn.startswith('<div class="diagram"><svg')
    assert "<title>a&#45;&gt;b</title>" in drawn
    assert diagrams.INK not in drawn
    with pytest.raises(SuperFencesException, match=r"cannot be drawn: .*syntax error"):
        diagrams.drawn("digraph { a -> ", "dot", "diagram", {}, None)


def test_every_setting_is_in_its_table_once():
    page = tables.on_page_markdown("# Training\n\n{{ settings }}\n")
    for field in dataclasses.fields(PolicySplitConfig):
        assert page.count(f"\n| `{field.name}` |") == 1
    assert "\n| `kappa` | `2.0` | The bonus is clamped to \\|advantage\\| / kappa" in page
    assert tables.on_page_markdown("{settings}") == "{settings}"


def test_a_group_that_begins_with_no_setting_is_an_error(monkeypatch):
    monkeypatch.setitem(tables.FIRST, "gone", "A group")
    with pytest.raises(ValueError, match="gone"):
        tables.on_page_markdown("{{ settings }}")


def test_every_baseline_is_in_the_table():
    page = tables.on_page_markdown("{{ algorithms }}")
    assert [name for name in ALGORITHMS if f"| `{name}` |" not in page] == ["policy_split"]
    assert (
        "| `pass_at_k` | [2508.10751](https://arxiv.org/abs/2508.10751) | advantages | `k` 4, `correct_reward` 1.0 |"
        in page
    )
