"""The report of runs: it holds the runs' numbers, names what is missing, and nothing in it is a model's markup."""

import base64
import hashlib
import json

import pytest
import tiny
from plotly.offline import get_plotlyjs
from report_page import Page, page_of
from run_folders import HOSTILE, metrics_of, sample_of, whole_run, write

from policy_split import extras
from policy_split.commands.report import run
from policy_split.report.build import report
from policy_split.training.trainer import PolicySplitTrainer

TRAINING = ["Reward", "Entropy", "Clip fraction", "KL between the modes"]


@pytest.mark.parametrize("static", [False, True])
def test_a_whole_run_has_every_figure_and_says_that_nothing_is_missing(tmp_path, static):
    page = page_of([whole_run(tmp_path / "one")], tmp_path, static=static)
    assert page.texts("h3")[:4] == TRAINING
    names = ["training-reward", "training-entropy", "training-clip_ratio", "training-kl", "pass-at-k"]
    assert [figure["aria-labelledby"] for figure in page.all("figure")] == [f"{name}-title" for name in names]
    assert [figure["aria-describedby"] for figure in page.all("figure")] == [f"{name}-words" for name in names]
    if static:
        assert len(page.all("svg", role="img")) == 5
    else:
        assert list(page.figures) == names
    assert page.texts("h3", id="training-reward-title") == ["Reward"]
    words = page.texts("p", id="training-kl-words")[0]
    assert words == (
        "nats per token over step. normal: 0.01 at step 1, 0.4 at step 40. "
        "high-entropy: 0.02 at step 1, 0.8 at step 40."
    )
    assert page.section("missing").startswith("Missing\nNothing")
    assert "torch\n2.13" in page.section("versions")
    assert "eta\n0.5" in page.section("configuration")
    ids = [element["id"] for element in page.elements if "id" in element]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("static", [False, True])
def test_nothing_that_a_model_wrote_is_markup(tmp_path, static):
    folder = whole_run(
        tmp_path / "<b>&run",
        samples_jsonl=[
            sample_of(1, "normal", HOSTILE, prompt=HOSTILE),
            sample_of(1, "high_entropy", HOSTILE, tokens=None),
            sample_of(1, HOSTILE),
        ],
        config_yaml=json.dumps({HOSTILE: HOSTILE, "list": [HOSTILE]}),
        environment_json={HOSTILE: {HOSTILE: HOSTILE}},
        evaluation_json={"modes": {"normal": {HOSTILE: 1.0, "pass_at_k": {HOSTILE: 1.0}}}},
    )
    page = page_of([folder, whole_run(tmp_path / "plain")], tmp_path, static=static)
    tags = {element["tag"] for element in page.elements}
    assert not tags & {"img", "iframe", "object", "link", "base", "b", "form", "input", "foreignobject"}
    for each in page.elements:
        assert not [name for name in each if name.startswith("on") or name == "src"]
        assert each.get("href", "#").startswith("#")
        assert each.get("xlink:href", "#").startswith("#")
        if each.get("class") == "token":
            assert each["style"].startswith("--h:")
    assert page.texts("div", class_="text prompt", dir="auto")[0] == HOSTILE
    assert HOSTILE in page.texts("span", class_="token")
    assert HOSTILE in page.texts("div", class_="text", dir="auto")
    assert HOSTILE in page.texts("td")
    assert HOSTILE not in page.source
    assert "1 of an unknown mode left out." in page.texts("p")


def test_only_our_scripts_may_run(tmp_path):
    """Those of which the policy has the hash; what is data is no script; and a static report has none at all."""
    folder = whole_run(tmp_path / "one")
    page = page_of([folder], tmp_path)
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    scripts = [each["text"] for each in page.all("script") if each.get("type") is None]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    assert scripts[0] == get_plotlyjs()
    assert f"script-src 'sha256-{hashes[0]}' 'sha256-{hashes[1]}';" in policy
    assert policy.startswith("default-src 'none'; ")
    assert {each.get("type") for each in page.all("script")[:-2]} == {"application/json"}
    static = page_of([folder], tmp_path, static=True)
    assert static.all("script") == static.all("noscript") == static.all("button") == []
    policy = static.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert "script" not in policy
    assert "default-src 'none'" in policy
    assert "<script" not in static.source
    assert "http" not in static.source.replace("http-equiv", "")
    assert len(static.source) < 300_000


def test_names_are_no_markup_of_plotly(tmp_path):
    folders = [whole_run(tmp_path / name) for name in ("<b>x&lt;", "y" * 60, "a\x07b")]
    named = [trace["name"] for trace in page_of(folders, tmp_path).figures["training-kl"]["data"] if "name" in trace]
    assert named[::2] == ["&lt;b&gt;x&amp;lt;, normal", f"…{'y' * 31}, normal", "a\u2407b, normal"]


def test_characters_that_html_forbids_are_shown(tmp_path):
    text = "a\x00b\x1b[2Jc\ud800d\rz\n"
    folder = write(tmp_path / "one", samples_jsonl=[sample_of(1, "normal", text)])
    page = page_of([folder], tmp_path)
    assert page.texts("span", class_="token")[0] == "a\u2400b\u241b[2Jc\ufffdd\u240dz\n"


def test_columns_without_a_value_are_named(tmp_path):
    rows = [{"step": 1, "normal/reward": 0.5}]
    page = page_of([write(tmp_path / "one", metrics_jsonl=rows)], tmp_path)
    assert "No values: high-entropy." in page.texts("p", class_="missing")
    assert page.texts("p", class_="missing").count("No values: normal, high-entropy.") == 3
    assert list(page.figures) == ["training-reward"]


def test_several_runs_lie_over_one_another_and_are_told_apart(tmp_path):
    first = whole_run(tmp_path / "a" / "run", config_yaml="eta: 0.5\nseed: 1\n")
    second = whole_run(tmp_path / "b" / "run", steps=20, config_yaml="eta: 0.25\nseed: 1\n")
    page = page_of([first, second, first], tmp_path)
    assert "Runs: a/run, b/run" in page.texts("p")
    words = page.texts("p", id="training-kl-words")[0]
    assert "a/run, high-entropy: 0.02 at step 1, 0.8 at step 40." in words
    assert "b/run, high-entropy: 0.02 at step 1, 0.4 at step 20." in words
    looks = {
        (trace["name"], trace["meta"]["color"], trace["line"]["dash"])
        for figure in page.figures.values()
        for trace in figure["data"]
        if "name" in trace
    }
    assert looks == {
        ("a/run, normal", 0, "solid"),
        ("a/run, high-entropy", 0, "dash"),
        ("b/run, normal", 1, "solid"),
        ("b/run, high-entropy", 1, "dash"),
    }
    switches = [(each["text"].strip(), each.get("data-run"), each.get("data-mode")) for each in page.all("button")]
    entries = [("a/run", "0", None), ("b/run", "1", None), ("normal mode", None, "0"), ("high-entropy mode", None, "1")]
    assert switches == 2 * entries  # of the training, of the evaluation
    differing = page.section("configuration").partition("all of")[0]
    assert "eta\n0.5\n0.25" in differing
    assert "seed" not in differing


def test_every_missing_piece_is_named(tmp_path):
    page = page_of([write(tmp_path / "one", metrics_jsonl=[metrics_of(1)])], tmp_path)
    missing = page.section("missing")
    for piece in ("evaluation.json", "samples.jsonl (or completions.jsonl)", "config.yaml (or config.json)"):
        assert f"one: no {piece}" in missing
    assert "one: no environment.json: versions and machine cannot be shown" in missing
    assert "metrics.jsonl" not in missing
    assert "one has no evaluation.json" in page.section("evaluation")
    assert "No samples" in page.section("samples")
    page = page_of([write(tmp_path / "two", config_json={"eta": 1})], tmp_path)
    assert "two: no metrics.jsonl: training curves cannot be shown" in page.section("missing")
    assert "config" not in page.section("missing")
    assert page.texts("p", class_="missing").count("No values: normal, high-entropy.") == 4


def test_what_cannot_be_read_is_named(tmp_path):
    folder = whole_run(
        tmp_path / "one",
        metrics_jsonl=json.dumps(metrics_of(1)) + "\n[1]\n" + '{"step": 2, "normal/rew',
        evaluation_json="{",
        config_yaml="a: [",
        environment_json="[]",
        samples_jsonl="\n",
    )
    missing = page_of([folder], tmp_path).section("missing")
    assert "metrics.jsonl: 2 unreadable lines left out" in missing
    for words in (
        "evaluation.json cannot be read: ", "config.yaml cannot be read: ", "environment.json holds no names",
        "samples.jsonl has no sample yet",
    ):  # fmt: skip
        assert words in missing
    empty = write(tmp_path / "empty", metrics_jsonl="")
    assert "metrics.jsonl has no step yet" in page_of([empty], tmp_path).section("missing")


def test_folders_that_are_no_runs(tmp_path):
    with pytest.raises(ValueError, match="at least one run"):
        report([], tmp_path / "page.html")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        report([tmp_path / "nowhere"], tmp_path / "page.html")
    with pytest.raises(FileNotFoundError, match="holds no run: none of metrics"):
        report([tmp_path], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_real_run_has_every_curve(tmp_path, capsys):
    config = tiny.config(tmp_path / "run", max_steps=3, log_exact_kl=True)
    PolicySplitTrainer(tiny.model(), tiny.tokenizer(), tiny.reward, tiny.QUESTIONS, config).train()
    target = tmp_path / "new" / "page.html"
    assert run([str(tmp_path / "run"), "--output", str(target)]) == 0
    assert capsys.readouterr().out == f"report: {target}\n"
    page = Page(target)
    assert page.texts("h3")[:5] == [*TRAINING, "Exact KL between the modes"]
    assert len(page.figures) == 5
    assert "No values" not in page.section("training")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    reward = f"{rows[0]['normal/reward']:.4g} at step 1, {rows[2]['normal/reward']:.4g} at step 3."
    assert f"normal: {reward}" in page.texts("p", id="training-reward-words")[0]
    assert run([str(tmp_path / "run"), "--static", "--output", str(target)]) == 0
    assert len(Page(target).all("svg", role="img")) == 5


def test_a_static_report_says_what_it_lacks(tmp_path, monkeypatch):
    folder, find = whole_run(tmp_path / "one"), extras.importlib.util.find_spec
    monkeypatch.setattr(
        extras.importlib.util, "find_spec", lambda name, *more: None if name == "matplotlib" else find(name, *more)
    )
    with pytest.raises(ImportError, match=r"report --static needs .* matplotlib: pip install policy-split\[plot\]"):
        report([folder], tmp_path / "page.html", static=True)
    assert not (tmp_path / "page.html").exists()
    assert report([folder], tmp_path / "page.html").is_file()
