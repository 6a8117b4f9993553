"""The README is two screens, and what it and CONTRIBUTING.md point to is there."""

import re
from pathlib import Path

import pytest
from page_blocks import ROOT, blocks

README = ROOT / "README.md"
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")


def test_it_is_short():
    lines = README.read_text().splitlines()
    assert len(lines) <= 150
    loss, trl = [block.source.splitlines() for block in blocks(README) if block.language == "python"]
    assert len(loss) <= 10
    assert len(trl) <= 5
    table = [line for line in lines[lines.index("## Measured") :] if line.startswith("| ")][2:]
    assert len(table) <= 8
    assert all("make " in row or "python -m " in row for row in table), "a figure without its command"


def test_its_parts_stand_in_their_order():
    wanted = (
        "# Policy Split",
        "![",
        "make train",
        "## The drop-in loss",
        "## In TRL",
        "## On the command line",
        "## Measured",
    )
    places = [README.read_text().index(part) for part in (*wanted, "## Measured", "## Not measured", "## The rest")]
    assert places == sorted(places)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(page):
    for target in LINK.findall((ROOT / page).read_text()):
        assert Path(ROOT / target).exists(), target
