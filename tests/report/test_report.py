"""The report of runs: its figures and tables hold the runs' numbers, nothing in it is a model's markup, all is seen."""

import json
import math
from html.parser import HTMLParser

import numpy as np
import pytest
import tiny
import torch
from browser import Browser, find_browser
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from policy_split.commands.report import run
from policy_split.models.policy import Policy
from policy_split.report.build import report
from policy_split.report.charts import smooth, thin, ticks
from policy_split.report.page import element, escape
from policy_split.report.runs import spread
from policy_split.rewards.functions import as_reward_functions
from policy_split.rollouts.rollout import make_rollout, score_rollout
from policy_split.rollouts.samples import sample_rows, token_texts
from policy_split.training.trainer import PolicySplitTrainer

HOSTILE = '</script><script>window.broken=1</script><img src=x onerror="window.broken=1"></style>"\'&amp;'
VOID = {"meta"}
TRAINING = ["Reward", "Entropy", "Clip fraction", "KL between the modes"]


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


def metrics_of(step, shift=0.0):
    modes = (("normal", 0.0), ("high_entropy", 0.25))
    row = {"step": step}
    for mode, more in modes:
        row |= {f"{mode}/reward": 0.5 + more + shift, f"{mode}/entropy": 1.0 + more + shift, f"{mode}/clip_ratio": 0.0}
    return row | {"policy_split/kl_high_normal": 0.02 * step, "policy_split/kl_normal_high": 0.01 * step}


def sample_of(step, mode, text="a b", **options):
    row = {"step": step, "mode": mode, "prompt": f"question for {mode}", "completion": text, "reward": 1.0}
    return row | {"tokens": [text, "<eos>"], "entropy": [2.0, 0.5]} | options


def evaluation_of(accuracy=0.5):
    measures = {"accuracy": {"mean": accuracy, "low": 0.25, "high": 0.75}, "entropy": 1.5, "distinct_correct": 3.0}
    ks = {"1": {"mean": accuracy, "low": 0.25, "high": 0.75}, "2": {"mean": 0.75, "low": 0.5, "high": 1.0}, "8": 0.875}
    mode = {"pass_at_k": ks, **measures}
    kl = {"kl_high_normal": {"mean": 0.125, "low": 0.1, "high": 0.2}, "kl_normal_high": 0.25}
    return {"modes": {"normal": mode, "high_entropy": mode}, **kl, "num_questions": 12, "num_samples": 8}


def write(folder, **pieces):
    """A run's folder: `metrics_jsonl=[rows]`, `config_yaml=text or values` and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in pieces.items():
        lines = value if isinstance(value, str) else json.dumps(value)
        if not isinstance(value, str) and name.endswith("jsonl"):
            lines = "".join(json.dumps(row) + "\n" for row in value)
        (folder / name.replace("_", ".")).write_text(lines)
    return folder


def whole_run(folder, steps=40, **pieces):
    samples = [sample_of(step, mode) for step in (1, 20, 40) for mode in ("normal", "high_entropy")]
    return write(
        folder,
        **{
            "metrics_jsonl": [metrics_of(step) for step in range(1, steps + 1)],
            "evaluation_json": evaluation_of(),
            "samples_jsonl": samples,
            "config_yaml": "eta: 0.5\nseed: 1\n",
            "environment_json": {"python": "3.11", "packages": {"torch": "2.13"}},
        }
        | pieces,
    )


def page_of(folders, tmp_path):
    return Page(report(folders, tmp_path / "page.html"))


def test_a_whole_run_has_every_figure_and_says_that_nothing_is_missing(tmp_path):
    page = page_of([whole_run(tmp_path / "one")], tmp_path)
    assert page.texts("h3")[:4] == TRAINING
    drawings = page.all("svg", role="img")
    assert [drawing["aria-labelledby"] for drawing in drawings] == [
        f"{name}-title {name}-words"
        for name in ("training-reward", "training-entropy", "training-clip_ratio", "training-kl", "pass-at-k")
    ]
    assert page.texts("title", id="training-reward-title") == ["Reward"]
    words = page.texts("desc", id="training-kl-words")[0]
    assert words == (
        "nats per token over step. normal: 0.01 at step 1, 0.4 at step 40. "
        "high-entropy: 0.02 at step 1, 0.8 at step 40."
    )
    assert len([e for e in page.all("path") if e.get("class", "").startswith("line c") and "d" in e]) >= 10
    assert page.section("missing").startswith("MissingNothing")
    assert "torch2.13" in page.section("versions")
    assert "eta0.5" in page.section("configuration")
    ids = [element["id"] for element in page.elements if "id" in element]
    assert len(ids) == len(set(ids))


def test_nothing_that_a_model_wrote_is_markup(tmp_path):
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
    page = page_of([folder, whole_run(tmp_path / "plain")], tmp_path)
    tags = {element["tag"] for element in page.elements}
    assert not tags & {"script", "img", "iframe", "object", "link", "base", "b", "form", "input", "foreignobject"}
    assert len(page.all("style")) == 1
    for each in page.elements:
        assert not [name for name in each if name.startswith("on") or name in ("src", "xlink:href")]
        assert each.get("href", "#").startswith("#")
        assert each.get("style", "--h:0").startswith("--h:")
    assert page.texts("div", class_="text prompt", dir="auto")[0] == HOSTILE
    assert HOSTILE in page.texts("span", class_="token")
    assert HOSTILE in page.texts("div", class_="text", dir="auto")
    assert "http" not in page.source.replace("http-equiv", "")
    assert "default-src 'none'" in page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert "1 of an unknown mode left out." in page.texts("p")


def test_attributes_cannot_be_left():
    text = """'"><b onclick=x>&"""
    assert element("i", escape(text), {"title": text}) == (
        '<i title="&#x27;&quot;&gt;&lt;b onclick=x&gt;&amp;">&#x27;&quot;&gt;&lt;b onclick=x&gt;&amp;</i>'
    )


def test_characters_that_html_forbids_are_shown(tmp_path):
    text = "a\x00b\x1b[2Jc\ud800d\rz\n"
    folder = write(tmp_path / "one", samples_jsonl=[sample_of(1, "normal", text)])
    page = page_of([folder], tmp_path)
    assert page.texts("span", class_="token")[0] == "a\u2400b\u241b[2Jc\ufffdd\u240dz\n"


def test_null_and_nan_leave_gaps(tmp_path):
    rows = [metrics_of(step) for step in range(1, 8)]
    rows[2]["normal/reward"] = None
    rows[3]["normal/reward"] = math.nan
    rows[5]["normal/reward"] = math.inf
    del rows[6]["normal/reward"]
    page = page_of([write(tmp_path / "one", metrics_jsonl=rows)], tmp_path)
    path = next(e for e in page.all("path") if e.get("class") == "line c0" and "L" in e["d"])["d"]
    # steps 1-2 are a line and step 5 stands alone, as a dot: a line of no length
    assert path.count("M") == path.count("h0") == 2
    assert path.count("L") == 1
    assert "nan" not in path.lower()


def test_columns_without_a_value_are_named(tmp_path):
    rows = [{"step": 1, "normal/reward": 0.5}]
    page = page_of([write(tmp_path / "one", metrics_jsonl=rows)], tmp_path)
    assert "No values: high-entropy." in page.texts("p", class_="missing")
    assert page.texts("p", class_="missing").count("No values: normal, high-entropy.") == 3
    assert len(page.all("svg", role="img")) == 1


def test_several_runs_lie_over_one_another_and_are_told_apart(tmp_path):
    first = whole_run(tmp_path / "a" / "run", config_yaml="eta: 0.5\nseed: 1\n")
    second = whole_run(tmp_path / "b" / "run", steps=20, config_yaml="eta: 0.25\nseed: 1\n")
    page = page_of([first, second, first], tmp_path)
    assert page.texts("p")[0] == "Runs: a/run, b/run"
    words = page.texts("desc", id="training-kl-words")[0]
    assert "a/run, high-entropy: 0.02 at step 1, 0.8 at step 40." in words
    assert "b/run, high-entropy: 0.02 at step 1, 0.4 at step 20." in words
    looks = {e["class"] for e in page.all("path") if e.get("class", "").startswith("line") and len(e["d"]) > 8}
    assert looks == {"line c0", "line c0 dashed", "line c1", "line c1 dashed"}
    differing = page.section("configuration").partition("all of")[0]
    assert "eta0.50.25" in differing
    assert "seed" not in differing


def test_numbers_of_an_evaluation(tmp_path):
    page = page_of([whole_run(tmp_path / "one")], tmp_path)
    text = page.section("evaluation")
    assert "0.5 [0.25, 0.75]" in text
    assert "0.125 [0.1, 0.2]" in text
    assert page.texts("td").count("12") == page.texts("td").count("8") == 2  # questions, samples; a row per mode
    words = page.texts("desc", id="pass-at-k-words")[0]
    assert "normal: 0.5 at k 1, 0.875 at k 8." in words
    assert len([e for e in page.all("path") if e.get("class", "").startswith("band")]) == 2


def test_evaluations_of_the_same_questions_are_compared_in_pairs(tmp_path):
    def evaluation(accuracies):
        scores = {f"{mode}/accuracy": accuracies for mode in ("normal", "high_entropy")}
        return evaluation_of() | {"questions": ["q1", "q2", "q3"], "per_question": scores}

    first = whole_run(tmp_path / "first", evaluation_json=evaluation([0.0, 0.25, 0.5]))
    second = whole_run(tmp_path / "second", evaluation_json=evaluation([0.5, 0.75, 1.0]))
    other = whole_run(tmp_path / "other", evaluation_json=evaluation_of())
    page = page_of([first, second, other], tmp_path)
    assert "second minus first, question by question" in page.texts("h3")
    # the same difference on each of three questions: 2 of the 8 sign patterns are as extreme
    assert "normal: accuracy0.5 [0.5, 0.5]0.25" in page.section("evaluation")
    assert any(text.startswith("Cannot be compared: ") for text in page.texts("p", class_="missing"))


@pytest.mark.parametrize(
    "evaluation", [{}, {"modes": 3}, {"modes": {"normal": {"pass_at_k": [1], "accuracy": "high"}}}, {"num_samples": 1}]
)
def test_evaluations_that_lack_something_are_shown_as_far_as_they_go(tmp_path, evaluation):
    page = page_of([whole_run(tmp_path / "one", evaluation_json=evaluation)], tmp_path)
    assert page.section("evaluation")
    assert page.texts("p", class_="missing")


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


def test_samples_stand_side_by_side_with_their_entropies(tmp_path):
    rows = [sample_of(step, mode) for step in range(10) for mode in ("normal", "high_entropy") for _ in range(9)]
    page = page_of([write(tmp_path / "one", samples_jsonl=rows)], tmp_path)
    steps = [e for e in page.all("details") if e["text"].startswith("step")]
    assert [e["text"][:6] for e in steps] == ["step 9", "step 7", "step 5", "step 4", "step 2", "step 0"]
    assert ["open" in e for e in steps] == [True] + [False] * 5
    assert "6 of the 10 steps with samples are shown." in page.texts("p")
    assert page.texts("h4")[:2] == ["normal mode", "high-entropy mode"]
    assert len(page.all("div", class_="sample")) == 6 * 2 * 4
    assert page.texts("div", class_="text prompt")[:2] == ["question for normal", "question for high_entropy"]
    first, second = page.all("span", class_="token")[:2]
    assert (first["text"], first["title"], first["style"]) == ("a b", "2.000 nats", "--h:0.60")
    assert (second["text"], second["title"], second["style"]) == ("<eos>", "0.500 nats", "--h:0.15")
    assert "reward 1, 2 tokens, mean entropy 1.250 nats" in page.texts("p")


def test_samples_that_are_long_or_lack_their_entropies(tmp_path):
    rows = [
        sample_of(1, "normal", tokens=["x"] * 450, entropy=[1.0] * 450),
        sample_of(1, "high_entropy", tokens=["u", "", "w"], entropy=[None, 1.0, math.nan], reward=None),
    ]
    page = page_of([write(tmp_path / "one", samples_jsonl=rows)], tmp_path)
    assert len(page.all("span", class_="token")) == 400 + 3
    assert "50 more tokens are not shown." in page.texts("p")
    assert "no reward, 3 tokens, mean entropy 1.000 nats" in page.texts("p")
    texts = [{"step": 1, "mode": "normal", "prompt": "p", "completion": "the text", "reward": 0.5}]
    page = page_of([write(tmp_path / "two", completions_jsonl=texts)], tmp_path)
    assert "the text" in page.texts("div", class_="text")
    assert "reward 0.5, no entropies" in page.texts("p")
    assert "the texts of completions.jsonl are shown, without entropies" in page.section("missing")
    assert "No sample of this mode at this step." in page.texts("p")


def test_smoothing_and_thinning():
    values = np.full(100, 1.0)
    values[50], values[90] = 6.0, np.nan
    line = smooth(values)  # windows of 2 on each side
    assert line[[47, 48, 50, 52, 53]] == pytest.approx([1, 2, 2, 2, 1])
    assert math.isnan(line[90])
    assert line[[0, 89, 91, 99]] == pytest.approx(1.0)
    assert np.array_equal(smooth(values[:39]), values[:39])
    wave = np.sin(np.arange(10_000.0))
    wave[7_777], wave[3_000:3_100] = 50.0, np.nan
    kept = thin(wave)
    assert len(kept) <= 500
    assert 7_777 in kept
    assert (np.diff(kept) > 0).all()
    assert np.nanmin(wave[kept]) == np.nanmin(wave)
    assert np.isnan(wave[kept]).any()
    assert np.array_equal(thin(wave[:500]), np.arange(500))


def test_ticks_and_places():
    values, texts = zip(*ticks(0.0, 0.5, 5), strict=True)
    assert values == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert texts == ("0", "0.1", "0.2", "0.3", "0.4", "0.5")
    assert [text for _, text in ticks(1, 120, 6, whole=True)] == ["20", "40", "60", "80", "100", "120"]
    assert [text for _, text in ticks(1, 3, 6, whole=True)] == ["1", "2", "3"]
    assert [text for _, text in ticks(-1e-5, 2e-5, 3)] == ["-1e-05", "0", "1e-05", "2e-05"]
    assert spread(3, 6) == [0, 1, 2]
    assert spread(100, 4) == [0, 33, 66, 99]


@pytest.mark.parametrize("value", [0.0, -2.5, 1e30, 1e-300])
def test_constant_curves_can_be_drawn(tmp_path, value):
    rows = [metrics_of(step) | {"normal/reward": value, "high_entropy/reward": value} for step in (1, 2)]
    page = page_of([write(tmp_path / "one", metrics_jsonl=rows)], tmp_path)
    assert page.texts("title", id="training-reward-title") == ["Reward"]
    assert "nan" not in "".join(e["d"] for e in page.all("path"))


def test_a_long_run_stays_a_small_file(tmp_path):
    folder = write(tmp_path / "one", metrics_jsonl=[metrics_of(step, 0.1 * (step % 7)) for step in range(20_000)])
    page = page_of([folder], tmp_path)
    assert len(page.source) < 400_000
    assert max(e["d"].count("L") for e in page.all("path")) <= 500


def rollout(tmp_path, **options):
    config, policy = tiny.config(tmp_path, **options), Policy(tiny.model(), tiny.tokenizer())
    functions = as_reward_functions(tiny.reward, None)
    made = make_rollout(policy, tiny.QUESTIONS[:2], functions, config, num_generations=3, seed=0)
    return made, policy, config


def test_sample_rows_are_the_rollout(tmp_path):
    made, policy, config = rollout(tmp_path)
    with pytest.raises(ValueError, match="score_rollout"):
        sample_rows(made, policy.tokenizer, 7, 2)
    score_rollout(policy, made, config)
    with pytest.raises(ValueError, match="limit=0"):
        sample_rows(made, policy.tokenizer, 7, 0)
    rows = sample_rows(made, policy.tokenizer, 7, 2)
    assert [row["mode"] for row in rows] == ["normal", "normal", "high_entropy", "high_entropy"]
    assert [row["prompt"] for row in rows] == ["1 2 3", "1 2 3", "explore 1 2 3", "explore 1 2 3"]
    for row, place in zip(rows, (0, 1, 6, 7), strict=True):
        length = made.completion_lengths[place]
        ids = made.completion_ids[place, :length].tolist()
        assert row.keys() == {"step", "mode", "prompt", "completion", "reward", "tokens", "entropy"}
        assert (row["step"], row["completion"]) == (7, made.texts[place])
        assert row["reward"] == made.rewards[place].item()
        assert "".join(row["tokens"]) == policy.tokenizer.decode(ids)
        assert len(row["tokens"]) == len(row["entropy"]) == length
        assert row["entropy"] == pytest.approx(made.entropy[place, :length].tolist(), abs=1e-4)
    assert len(sample_rows(made, policy.tokenizer, 7, 9)) == 6
    made.entropy[0, 0] = torch.nan
    assert json.dumps(sample_rows(made, policy.tokenizer, 7, 1), allow_nan=False)


def test_characters_of_several_tokens_stand_at_their_last(tmp_path):
    """One token per byte: each character of UTF-8 takes as many tokens as bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: place for place, letter in enumerate(alphabet)}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, clean_up_tokenization_spaces=False)
    ids = tokenizer.encode(" é x\u20ac\U0001f600")
    assert token_texts(tokenizer, ids) == [" ", "", "é", " ", "x", "", "", "\u20ac", "", "", "", "\U0001f600"]
    assert token_texts(tokenizer, ids[:-1])[-4:] == ["\u20ac", "", "", "\ufffd"]  # cut within a character
    assert token_texts(tokenizer, []) == []
    broken = [ids[-1]] * 9  # never a character: it is shown all the same, and soon
    assert token_texts(tokenizer, broken)[:4] == ["", "", "", "\ufffd" * 4]


def test_a_real_run_has_every_curve(tmp_path, capsys):
    config = tiny.config(tmp_path / "run", max_steps=3, log_exact_kl=True)
    PolicySplitTrainer(tiny.model(), tiny.tokenizer(), tiny.reward, tiny.QUESTIONS, config).train()
    target = tmp_path / "new" / "page.html"
    assert run([str(tmp_path / "run"), "--output", str(target)]) == 0
    assert capsys.readouterr().out == f"report: {target}\n"
    page = Page(target)
    assert page.texts("h3")[:5] == [*TRAINING, "Exact KL between the modes"]
    assert len(page.all("svg", role="img")) == 5
    assert "No values" not in page.section("training")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    reward = f"{rows[0]['normal/reward']:.4g} at step 1, {rows[2]['normal/reward']:.4g} at step 3."
    assert f"normal: {reward}" in page.texts("desc", id="training-reward-words")[0]


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
    charts: all('svg[role=img]').map(box), lines: all('svg[role=img] path.line').map(box),
    letters: all('svg[role=img] text').map(each => each.getBoundingClientRect().height),
    contrast: Math.min(...all('p, li, td, th, summary, a, .token, .prompt, h1').map(contrast)),
    back: light(behind(document.body)), wide: document.documentElement.scrollWidth, broken: window.broken ?? null,
    heat: new Set(all('.token').map(each => getComputedStyle(each).backgroundColor)).size,
    sides: all('.sides')[0] ? [...all('.sides')[0].children].map(each => each.getBoundingClientRect().top) : [],
  };
})()"""


@pytest.mark.skipif(find_browser() is None, reason="there is no Chromium here")
def test_in_a_browser_from_disk_without_a_network(tmp_path):
    hostile = [sample_of(1, mode, HOSTILE) for mode in ("normal", "high_entropy")]
    folders = [whole_run(tmp_path / "first"), whole_run(tmp_path / "second", samples_jsonl=hostile)]
    path = report(folders, tmp_path / "page.html")
    with Browser(tmp_path / "profile") as browser:
        for width, scheme in ((1200, "light"), (1200, "dark"), (375, "light"), (375, "dark")):
            browser.open(path, width=width, scheme=scheme)
            seen = browser.evaluate(LOOK)
            assert len(seen["charts"]) == 5
            assert all(w > 280 and h > 180 for w, h in seen["charts"]), seen["charts"]
            assert len(seen["lines"]) == 5 * 4
            assert all(w > 100 for w, _ in seen["lines"])
            assert min(seen["letters"]) > 8
            assert seen["contrast"] >= 4.5, (scheme, seen["contrast"])
            assert seen["wide"] <= width
            assert (seen["back"] > 0.9) if scheme == "light" else (seen["back"] < 0.05)
            assert seen["heat"] >= 2
            assert (seen["sides"][0] == seen["sides"][1]) == (width > 600)
            assert seen["broken"] is None
        assert browser.messages == []
        assert set(browser.requests) == {path.as_uri()}


@pytest.mark.skipif(find_browser() is None, reason="there is no Chromium here")
def test_the_browser_test_would_see_errors_and_requests(tmp_path):
    path = tmp_path / "bad.html"
    path.write_text("<script>console.error('seen'); missing()</script><img src='https://localhost/x.png'>")
    with Browser(tmp_path / "profile") as browser:
        browser.open(path)
        assert any("seen" in message for message in browser.messages)
        assert any("missing is not defined" in message for message in browser.messages)
        assert "https://localhost/x.png" in browser.requests
