"""The site builds without a warning and opens from disk without a network: formulas, diagrams and search are there."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from browser import Browser, find_browser

ROOT = Path(__file__).parents[2]
PAGES = sorted(path.stem for path in (ROOT / "docs").glob("*.md"))
in_a_browser = pytest.mark.skipif(find_browser() is None, reason="there is no Chromium here")

FORMULAS = """(() => {
  const sizes = [...document.querySelectorAll("math")].map(each => each.getBoundingClientRect())
  return {
    sizes: sizes.map(each => [each.width, each.height]),
    wide: [...document.querySelectorAll("div.formula")].filter(each => each.scrollWidth > each.clientWidth + 1).length,
    wrong: document.querySelectorAll("merror, .arithmatex").length,
    font: [...document.fonts].map(each => each.family + " " + each.status),
  }
})()"""
DIAGRAM = """(() => [...document.querySelectorAll(".diagram svg")].map(svg => {
  const inside = [...svg.querySelectorAll("g.node")].map(node => {
    const box = node.querySelector("path, polygon, ellipse").getBoundingClientRect()
    return [...node.querySelectorAll("text")].every(text => {
      const word = text.getBoundingClientRect()
      return word.width > 0 && word.left >= box.left && word.right <= box.right
    })
  })
  const whole = svg.getBoundingClientRect()
  return {
    width: whole.width, height: whole.height, inside: inside,
    ink: getComputedStyle(svg.querySelector("text")).fill,
    text: getComputedStyle(document.querySelector("article p")).color,
  }
}))()"""
PICTURES = "[...document.querySelectorAll('article img')].map(each => [each.src, each.complete && each.naturalWidth])"
SEARCH = """(() => {
  const box = document.querySelector("input.md-search__input")
  box.focus()
  box.value = "%s"
  box.dispatchEvent(new Event("input", {bubbles: true}))
  box.dispatchEvent(new KeyboardEvent("keyup", {bubbles: true}))
})()"""
FOUND = "[...document.querySelectorAll('.md-search-result__link')].map(each => each.getAttribute('href'))"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def test_every_page_is_built_with_every_setting_and_every_name(site):
    assert {path.stem for path in site.glob("*.html")} >= set(PAGES)
    assert "<code>per_device_train_batch_size</code>" in (site / "training.html").read_text()
    assert 'id="policy_split.dual_mode_loss"' in (site / "api.html").read_text()


def test_nothing_is_fetched(site):
    for page in site.glob("*.html"):
        text = page.read_text()
        for attribute in ('src="http', 'href="https://fonts', 'rel="preconnect"'):
            assert attribute not in text, (page.name, attribute)


@in_a_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_open_without_an_error_or_a_request(site, browser, scheme):
    for page in PAGES:
        browser.messages.clear()
        browser.requests.clear()
        browser.open(site / f"{page}.html", scheme=scheme)
        assert browser.messages == [], page
        assert [name for name in browser.requests if not name.startswith(("file:", "data:"))] == [], page
        assert [source for source, width in browser.evaluate(PICTURES) if not width] == [], page


@in_a_browser
@pytest.mark.parametrize("width", [1200, 400])
def test_formulas_are_drawn(site, browser, width):
    browser.open(site / "method.html", width=width)
    seen = browser.evaluate(FORMULAS)
    assert len(seen["sizes"]) >= 40
    assert all(w > 3 and h > 6 for w, h in seen["sizes"])
    assert max(h for _, h in seen["sizes"]) > 35  # a fraction is taller than its line
    assert seen["wrong"] == 0
    assert seen["font"] == ["STIX Two Math loaded"]
    assert width < 600 or seen["wide"] == 0


@in_a_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_diagram_is_drawn(site, browser, scheme):
    browser.open(site / "kernels.html", scheme=scheme)
    for diagram in (seen := browser.evaluate(DIAGRAM)):
        assert diagram["width"] > 300
        assert diagram["height"] > 100
        assert len(diagram["inside"]) >= 5
        assert all(diagram["inside"]), "a label does not fit into its box"
        assert diagram["ink"] == diagram["text"]
    assert len(seen) >= 1


@in_a_browser
def test_search_works_from_disk(site, browser):
    browser.open(site / "index.html")
    browser.evaluate(SEARCH % "divergence")
    deadline = time.monotonic() + 20
    while not (found := browser.evaluate(FOUND)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert any("loss.html" in link or "api.html" in link for link in found), found
