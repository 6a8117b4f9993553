"""Diagrams of the site: a fence ```dot becomes an SVG in the page, drawn by graphviz-pure while it is built."""

import re
import subprocess
import sys
from pathlib import Path

DOT = Path(sys.executable).parent / "dot"
INK = "#010203"  # what a diagram's lines and words have, and what becomes the colour of the page's text


def drawn(source: str, language: str, css_class: str, options: object, md: object, **_: object) -> str:
    """What pymdownx.superfences calls with the text of a fence."""
    return f'<div class="{css_class}">{svg(source)}</div>'


def svg(source: str) -> str:
    """The drawing of a graph as one SVG element without a size of its own; ValueError with what is wrong in it."""
    defaults = [f"-{kind}{name}={INK}" for kind in "NE" for name in ("color", "fontcolor")]
    command = [str(DOT), "-Tsvg", *defaults, "-Gbgcolor=transparent", "-Nfontname=sans-serif", "-Efontname=sans-serif"]
    done = subprocess.run(command, input=source, capture_output=True, text=True)
    if done.returncode or not done.stdout:
        raise ValueError(f"a diagram cannot be drawn: {done.stderr.strip()}\n{source}")
    element = done.stdout[done.stdout.index("<svg") :]
    return re.sub(r"<!--.*?-->\n?", "", element, flags=re.DOTALL).replace(INK, "currentColor")
