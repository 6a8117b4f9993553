"""The report as a reader sees it: in a headless Chromium, light and dark, wide and on a phone, with the network off."""

import time

import pytest
from browser import Browser, find_browser
from run_folders import HOSTILE, metrics_of, sample_of, whole_run, write

from policy_split.report.build import report

LOOK = """(() => {
  const box = each => { const b = each.getBoundingClientRect(); return [b.width, b.height]; };
  const parts = color => color.match(/[\\d.]+/g).map(Number);
  const over = (top, below) => { const a = top[3] ?? 1; return [0, 1, 2].map(i => a * top[i] + (1 - a) * below[i]); };
  const behind = each => each === null ? [255, 255, 255]
    : over(parts(getComputedStyle(each).backgroundColor), behind(each.parentElement));
  const light = color => { const [r, g, b] = color.map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const contrast = each => { const back = behind(each), text = over(parts(getComputedStyle(each).color), back);
    const [low, high] = [light(back), light(text)].sort((x, y) => x - y); return (high + 0.05) / (low + 0.05); };
  const all = selector => [...document.querySelectorAll(selector)];
  return {
    charts: all('figure > svg, .chart').map(box),
    lines: all('.chart .js-line, figure > svg > g [id*=line2d] path[clip-path]').map(box),
    letters: all('figure svg text').filter(each => each.textContent.trim()).map(each => box(each)[1]),
    inks: all('figure svg text').filter(each => each.textContent.trim())
      .map(each => [behind(each.closest('figure')), parts(getComputedStyle(each).fill)].map(light)),
    contrast: Math.min(...all('p, li, td, th, summary, a, button, .token, .prompt, h1').map(contrast)),
    back: light(behind(document.body)), wide: document.documentElement.scrollWidth, broken: window.broken ?? null,
    heat: new Set(all('.token').map(each => getComputedStyle(each).backgroundColor)).size,
    sides: all('.sides')[0] ? [...all('.sides')[0].children].map(each => each.getBoundingClientRect().top) : [],
  };
})()"""


@pytest.mark.skipif(find_browser() is None, reason="there is no Chromium here")
@pytest.mark.parametrize("static", [False, True])
def test_in_a_browser_from_disk_without_a_network(tmp_path, static):
    hostile = [sample_of(1, mode, HOSTILE) for mode in ("normal", "high_entropy")]
    folders = [whole_run(tmp_path / "<b>first"), whole_run(tmp_path / "second", samples_jsonl=hostile)]
    path = report(folders, tmp_path / "page.html", static=static)
    with Browser(tmp_path / "profile") as browser:
        for width, scheme in ((1200, "light"), (1200, "dark"), (375, "light"), (375, "dark")):
            browser.open(path, width=width, scheme=scheme)
            seen = browser.evaluate(LOOK)
            assert len(seen["charts"]) == 5
            assert all(w > 280 and h > 180 for w, h in seen["charts"]), seen["charts"]
            assert len(seen["lines"]) >= 5 * 4
            assert len([w for w, _ in seen["lines"] if w > 100]) >= 5 * 4
            assert min(seen["letters"]) > 8
            assert all((max(pair) + 0.05) / (min(pair) + 0.05) >= 4.5 for pair in seen["inks"])
            assert seen["contrast"] >= 4.5, (scheme, seen["contrast"])
            assert seen["wide"] <= width
            assert (seen["back"] > 0.9) if scheme == "light" else (seen["back"] < 0.05)
            assert seen["heat"] >= 2
            assert (seen["sides"][0] == seen["sides"][1]) == (width > 600)
            assert seen["broken"] is None
        assert browser.messages == []
        assert set(browser.requests) == {path.as_uri()}


COLORS = "[...new Set([...document.querySelectorAll('.js-line')].map(each => getComputedStyle(each).stroke))]"
SHOWN = "document.querySelectorAll('.chart .scatterlayer .trace').length"
PRESSED = "[...document.querySelectorAll('.legend button')].map(each => each.getAttribute('aria-pressed') === 'true')"


@pytest.mark.skipif(find_browser() is None, reason="there is no Chromium here")
def test_hovering_shows_values_and_the_legend_switches_runs_and_modes(tmp_path):
    path = report([whole_run(tmp_path / "<b>first"), whole_run(tmp_path / "second")], tmp_path / "page.html")
    with Browser(tmp_path / "profile") as browser:
        browser.open(path)
        left, top, width, height = browser.evaluate(
            "(b => [b.x, b.y, b.width, b.height])(document.querySelector('.chart .nsewdrag').getBoundingClientRect())"
        )
        for place in (0.9, 0.99):
            browser.send("Input.dispatchMouseEvent", type="mouseMoved", x=left + place * width, y=top + height / 2)
            time.sleep(0.2)
        hover = browser.evaluate("document.querySelector('.chart .hoverlayer').textContent")
        assert "step 40" in hover
        assert "<b>first, normal : 0.5" in hover
        assert "<b>first, high-entropy : 0.75" in hover

        def click(switch):
            browser.evaluate(f"document.querySelector('.legend button[{switch}]').click()")
            return browser.evaluate(SHOWN)

        whole = browser.evaluate(SHOWN)
        assert click('data-mode="1"') == whole / 2
        assert browser.evaluate(PRESSED) == [True, True, True, False] * 2
        assert click('data-run="0"') == whole / 4
        assert click('data-mode="1"') == whole / 2
        assert click('data-run="0"') == whole
        buttons = "[...document.querySelector('.chart').querySelectorAll('.modebar-btn')].map(e => e.dataset.title)"
        assert browser.evaluate(buttons) == ["Download plot as a PNG", "Zoom", "Pan", "Reset axes"]  # none that sends
        light = browser.evaluate(COLORS)
        scheme = [{"name": "prefers-color-scheme", "value": "dark"}]
        browser.send("Emulation.setEmulatedMedia", features=scheme)
        time.sleep(0.2)
        dark = browser.evaluate(COLORS)
        assert len(light) == len(dark) == 2  # a color to a run
        assert not set(light) & set(dark)
        assert browser.messages == []


@pytest.mark.skipif(find_browser() is None, reason="there is no Chromium here")
def test_curves_of_any_size_are_drawn(tmp_path):
    sizes = (0.0, -2.5, 1e30, 1e-300)
    folders = [
        write(
            tmp_path / f"run{number}",
            metrics_jsonl=[metrics_of(step) | {"normal/reward": size, "high_entropy/reward": size} for step in (1, 2)],
        )
        for number, size in enumerate(sizes)
    ]
    with Browser(tmp_path / "profile") as browser:
        for folder in folders:
            browser.open(report([folder], tmp_path / "page.html"))
            lines = browser.evaluate(
                "[...document.querySelector('.chart').querySelectorAll('.js-line')].map(e => e.getAttribute('d'))"
            )
            assert len(lines) == 2
            assert all(line.startswith("M0,") and "NaN" not in line for line in lines)
            marks = browser.evaluate("[...document.querySelectorAll('.chart .xtick text')].map(e => e.textContent)")
            assert set(marks) == {"1", "2"}
        assert browser.messages == []


@pytest.mark.skipif(find_browser() is None, reason="there is no Chromium here")
def test_the_browser_test_would_see_errors_and_requests(tmp_path):
    path = tmp_path / "bad.html"
    path.write_text("<script>console.error('seen'); missing()</script><img src='https://localhost/x.png'>")
    with Browser(tmp_path / "profile") as browser:
        browser.open(path)
        assert any("seen" in message for message in browser.messages)
        assert any("missing is not defined" in message for message in browser.messages)
        assert "https://localhost/x.png" in browser.requests
