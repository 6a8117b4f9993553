"""The page of a report: one HTML file with its own style, no script, and no door for anything that a model wrote."""

import html
import re
from collections.abc import Mapping, Sequence

# Nothing is fetched and nothing runs, whatever stands in the texts; a style attribute is only ever a number of ours.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

STYLE = """
:root { color-scheme: light dark; --back: #fff; --card: #f6f7f9; --text: #1b1f24; --quiet: #57606a; --edge: #d0d7de;
  --heat: 245 158 11; --warn: #9a3412;
  --c0: #0068a8; --c1: #c2410c; --c2: #047857; --c3: #9d3b8f; --c4: #7c5a00; --c5: #475569; --c6: #b91c3c;
  --c7: #0e7490; }
@media (prefers-color-scheme: dark) { :root { --back: #101418; --card: #191f26; --text: #e6e9ed; --quiet: #a3adb8;
  --edge: #37414c; --heat: 217 96 10; --warn: #fdba74;
  --c0: #5cb3f0; --c1: #fb923c; --c2: #34d399; --c3: #e38ad8; --c4: #e0b84c; --c5: #a8b5c8; --c6: #fb7185;
  --c7: #22d3ee; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0.5rem 0; } h2 { font-size: 1.25rem; margin: 2rem 0 0.5rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 0.25rem; }
figure h3 { margin: 0; } h4 { font-size: 0.9rem; margin: 0 0 0.4rem; }
p { margin: 0.4rem 0; } nav { display: flex; flex-wrap: wrap; gap: 0.25rem 1rem; } a { color: var(--c0); }
.quiet, figcaption p { color: var(--quiet); font-size: 0.875rem; } .missing { color: var(--warn); font-size: 0.875rem; }
.charts { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); }
figure { margin: 0; padding: 0.75rem; background: var(--card); border: 1px solid var(--edge); border-radius: 0.5rem;
  min-width: 0; max-width: 40rem; }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--quiet); font: 11px system-ui, sans-serif; }
.c0 { --c: var(--c0); } .c1 { --c: var(--c1); } .c2 { --c: var(--c2); } .c3 { --c: var(--c3); }
.c4 { --c: var(--c4); } .c5 { --c: var(--c5); } .c6 { --c: var(--c6); } .c7 { --c: var(--c7); }
.line, .raw { fill: none; stroke: var(--c); stroke-linejoin: round; stroke-linecap: round; }
.line { stroke-width: 2; } .raw { stroke-width: 1; opacity: 0.28; } .line.dashed { stroke-dasharray: 6 4; }
.band { fill: var(--c); opacity: 0.15; } .hover { fill: transparent; } .hover:hover { fill: var(--c); }
.grid { stroke: var(--edge); stroke-width: 0.6; } .axis, .mark { stroke: var(--quiet); fill: none; }
.legend { display: flex; flex-wrap: wrap; gap: 0.25rem 1.25rem; list-style: none; margin: 0.5rem 0; padding: 0; }
.legend li { overflow-wrap: anywhere; }
.legend svg { display: inline-block; width: 2rem; height: 0.75rem; margin-right: 0.4rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid var(--edge); text-align: right; white-space: nowrap; }
th[scope=row] { white-space: normal; min-width: 7rem; overflow-wrap: anywhere; }
th:first-child, .words td, .words th { text-align: left; }
.words td { white-space: pre-wrap; overflow-wrap: anywhere; min-width: 8rem; max-width: 40rem; }
td small { color: var(--quiet); } details { margin: 0.5rem 0; } summary { cursor: pointer; }
.sides { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
.sides > div { min-width: 0; }
.sample { margin: 0 0 0.75rem; padding: 0.6rem; background: var(--card); border: 1px solid var(--edge);
  border-radius: 0.5rem; }
.text { margin: 0 0 0.4rem; white-space: pre-wrap; overflow-wrap: anywhere; max-height: 28rem; overflow-y: auto;
  font: 0.875rem/1.7 ui-monospace, monospace; }
.prompt { color: var(--quiet); } .token, .scale span { background: rgb(var(--heat) / var(--h)); border-radius: 2px; }
.scale span { padding: 0 0.5rem; }
"""


def escape(text: str) -> str:
    """The text as HTML: markup becomes text, and characters that HTML forbids or that do not show become visible."""
    shown = re.sub("[\x00-\x08\x0b-\x1f]", lambda found: chr(0x2400 + ord(found[0])), text)
    return html.escape(re.sub("[\ud800-\udfff\x7f-\x9f\ufffe\uffff]", "\ufffd", shown))


def element(name: str, inner: str, attributes: Mapping[str, str] | None = None) -> str:
    """<name attributes>inner</name>; `inner` is HTML, the attributes' values are texts."""
    written = "".join(f' {key}="{escape(value)}"' for key, value in (attributes or {}).items())
    return f"<{name}{written}>{inner}</{name}>"


def legend(entries: Sequence[tuple[int | None, bool, str]]) -> str:
    """What lines mean: (color of the palette or None for any, dashed, text) each."""
    items = []
    for color, dashed, text in entries:
        look = f"line c{color % 8}" if color is not None else "axis"
        stroke = ' stroke-width="2" stroke-dasharray="6 4"' if dashed else ' stroke-width="2"'
        swatch = f'<svg viewBox="0 0 32 12" aria-hidden="true"><path class="{look}" d="M2 6H30"{stroke}/></svg>'
        items.append(element("li", swatch + escape(text)))
    return element("ul", "".join(items), {"class": "legend"})


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, words: bool = False) -> str:
    """A table that scrolls on its own where the page is narrow; the cells are HTML, the head is text."""
    top = element("tr", "".join(element("th", escape(text), {"scope": "col"}) for text in head))
    body = [element("th", row[0], {"scope": "row"}) + "".join(element("td", cell) for cell in row[1:]) for row in rows]
    whole = element("table", top + "".join(element("tr", row) for row in body), {"class": "words"} if words else None)
    return element("div", whole, {"class": "wide", "tabindex": "0", "role": "region", "aria-label": "table"})


def page(title: str, introduction: str, sections: Mapping[str, str]) -> str:
    """The whole file: `sections` is heading -> HTML."""
    names = {heading: heading.lower().replace(" ", "-") for heading in sections}
    links = "".join(element("a", escape(heading), {"href": f"#{name}"}) for heading, name in names.items())
    parts = [
        element("section", element("h2", escape(heading)) + inner, {"id": names[heading]})
        for heading, inner in sections.items()
    ]
    head = (
        f'<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>"
    )
    body = element("h1", escape(title)) + introduction + element("nav", links, {"aria-label": "Sections"})
    main = element("main", "\n".join(parts))
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n{main}\n</body>\n</html>\n'
