"""Diagrams of the site: a fence ```dot becomes an SVG in the page, drawn by graphviz-pure while it is built."""

import re
import subprocess
from importlib.metadata import files

from mkdocs.config.defaults import MkDocsConfig
from pymdownx.superfences import SuperFencesException

INK = "#010203"  # what a diagram's lines and words have, and what becomes the colour of the page's text
DEFAULTS = (
    "-Tsvg", "-Gbgcolor=transparent", f"-Gfontcolor={INK}", f"-Ncolor={INK}", f"-Nfontcolor={INK}",
    f"-Ecolor={INK}", f"-Efontcolor={INK}", "-Gfontname=sans-serif", "-Nfontname=sans-serif", "-Efontname=sans-serif",
)  # fmt: skip


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """mkdocs calls this with its settings; mkdocs.yml could name `drawn` only if it were installed."""
    fence = {"name": "dot", "class": "diagram", "format": drawn}
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]
    return config


def drawn(source: str, language: str, css_class: str, options: object, md: object, **_: object) -> str:
    """What pymdownx.superfences calls with the text of a fence; other exceptions it would swallow."""
    try:
        return f'<div class="{css_class}">{svg(source)}</div>'
    except ValueError as error:
        raise SuperFencesException(str(error)) from error


def svg(source: str) -> str:
    """The drawing of a graph as one SVG element; ValueError with what is wrong in it."""
    (dot,) = (file.locate() for file in files("graphviz-pure") or () if file.name == "graphviz-pure")
    done = subprocess.run([str(dot), *DEFAULTS], input=source, capture_output=True, text=True)
    if done.returncode or "<svg" not in done.stdout:
        raise ValueError(f"a diagram cannot be drawn: {done.stderr.strip()}\n{source}")
    element = re.sub(r"<!--.*?-->\n?", "", done.stdout[done.stdout.index("<svg") :], flags=re.DOTALL)
    # the reader's font may be wider than the one that boxes were laid out for
    element = re.sub(r'font-size="([\d.]+)"', lambda size: f'font-size="{float(size[1]) * 0.85:.1f}"', element)
    return element.replace(INK, "currentColor")
