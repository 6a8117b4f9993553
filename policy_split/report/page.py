"""The page of a report: Jinja2 templates, and no door for anything that a model wrote."""

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from .interactive import figure_json
from .static import drawing
from .text import visible

# Nothing is fetched, and no script runs but ours, whatever stands in the texts; a style attribute is only ever a number
# of ours. Plotly styles its charts itself and makes the pictures that a reader saves.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
SCRIPTS_POLICY = "; script-src {}; img-src data: blob:"


def render(template: str, *, static: bool, **values: Any) -> str:
    """The template as HTML: every value is text, made visible and escaped."""
    scripts = [] if static else [get_plotlyjs(), _template_file("charts.js")]
    policy = POLICY + (SCRIPTS_POLICY.format(" ".join(_hash(script) for script in scripts)) if scripts else "")
    return (
        _environment()
        .get_template(template)
        .render(
            **values,
            static=static,
            policy=policy,
            style=Markup(_template_file("style.css")),
            scripts=[Markup(script) for script in scripts],
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("policy_split.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure_json"] = lambda chart: Markup(figure_json(chart))
    environment.filters["drawing"] = lambda chart: Markup(drawing(chart))
    return environment


def _template_file(name: str) -> str:
    return (files("policy_split.report") / "templates" / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest())
    return f"'sha256-{digest.decode()}'"
