"""docs/api.md is what the docstrings say."""

import runpy
from pathlib import Path

import pytest

import policy_split

SCRIPT = Path(__file__).parents[2] / "scripts" / "api_reference.py"


def test_the_page_is_up_to_date():
    pytest.importorskip("trl", reason="trl is not installed", exc_type=ImportError)
    script = runpy.run_path(str(SCRIPT))
    page = script["page"]()
    assert script["PAGE"].read_text() == page, "run python scripts/api_reference.py"
    for name in policy_split.__all__:
        assert f"\n### {name}\n" in page
    assert "| `eta_high` | `0.03` |" in page


def test_every_public_name_says_what_it_does():
    for name in policy_split.__all__:
        assert (getattr(policy_split, name).__doc__ or "").strip(), name
