"""A report's page as its elements, for tests that look into the file."""

import json
from html.parser import HTMLParser

from policy_split.report.build import report

VOID = {"meta"}


class Page(HTMLParser):
    """Elements with their attributes and text, in the order of the file; fails where tags do not nest."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.open = [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append({"tag": tag, "text": "", **dict(attributes)})
        if tag not in VOID:
            self.open.append(self.elements[-1])

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for each in self.open:
            each["text"] += data

    def all(self, tag, **attributes):
        wanted = {key.rstrip("_"): value for key, value in attributes.items()}
        return [e for e in self.elements if e["tag"] == tag and all(e.get(k) == v for k, v in wanted.items())]

    def texts(self, tag, **attributes):
        return [element["text"] for element in self.all(tag, **attributes)]

    def section(self, name):
        return self.texts("section", id=name)[0]

    @property
    def figures(self):
        """Plotly's figures by the names of the charts."""
        names = [each["aria-labelledby"].removesuffix("-title") for each in self.all("figure")]
        drawn = [name for name in names if self.texts("p", id=f"{name}-words")]
        return dict(zip(drawn, map(json.loads, self.texts("script", type="application/json")), strict=True))


def page_of(folders, tmp_path, **options):
    return Page(report(folders, tmp_path / "page.html", **options))
