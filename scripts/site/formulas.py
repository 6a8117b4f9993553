"""Formulas of the site as MathML, made while it is built; the browser draws them with a font that lies beside."""

import html
import re
from importlib.metadata import files

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
FONT = "STIXTwoMath-Regular.ttf"  # which the package ziamath brings along


def on_files(collected: Files, config: object) -> Files:
    """mkdocs calls this with the files that the site is made of."""
    path = next(file.locate() for file in files("ziamath") or () if file.name == FONT)
    collected.append(File.generated(config, f"assets/{FONT}", abs_src_path=str(path)))
    return collected


def on_page_content(content: str, **_: object) -> str:
    """mkdocs calls this with the HTML of each page."""
    return FORMULA.sub(_drawn, content)


def _drawn(found: re.Match[str]) -> str:
    tag, bracket, latex = found.groups()
    display = "block" if bracket == "[" else "inline"
    return f'<{tag} class="formula">{convert(html.unescape(latex).strip(), display=display)}</{tag}>'
