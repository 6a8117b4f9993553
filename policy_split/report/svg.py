"""A figure of matplotlib as SVG text: the same text from the same figure, and short."""

import io
import re
from typing import Any

from policy_split.extras import import_extra


def svg_of(figure: Any, salt: str, asked_by: str) -> str:
    """Text stays text; places have two digits after the point, which halves a file of curves.

    salt: names the parts of the drawing, whose names are the same for the same salt.
    """
    drawn = io.StringIO()
    with import_extra("matplotlib", asked_by).rc_context({"svg.hashsalt": salt, "svg.fonttype": "none"}):
        figure.savefig(drawn, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return re.sub("<[^>]+>", _with_short_numbers, drawn.getvalue())  # not in what stands between the tags


def _with_short_numbers(tag: re.Match[str]) -> str:
    return re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", tag[0])
