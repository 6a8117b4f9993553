"""A study as its users run it: real processes, stopped and gone on with, and what its document says of its numbers."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import study_plan
from scipy import stats
from study_plan import PLAN, TINY

from policy_split.commands import study as command
from policy_split.commands.main import main
from policy_split.config import PolicySplitConfig
from policy_split.countdown.sizes import SIZES, find_size, load_size, save_size
from policy_split.study import runner
from policy_split.study.document import document
from policy_split.study.plan import PLANS, SEEDS, SPLIT_SEEDS
from policy_split.study.results import read_results
from policy_split.study.statistics import difference, estimate
from policy_split.study.variants import ABLATIONS, BASELINES, NAMES, chosen_variants


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "runs"
    runner.run_study(PLAN, folder)
    return folder


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def test_every_run_starts_alike_and_answers_the_same_questions(done):
    evaluations = [json.loads(path.read_text()) for path in sorted(done.glob("*-[12]/evaluation.json"))]
    assert len(evaluations) == 4
    before = json.loads((done / "warm-start" / "evaluation.json").read_text())
    assert all(each["questions"] == before["questions"] for each in evaluations)
    assert {TINY.task.split_of(problem) for problem in TINY.task.problems(12, seed=1, split="test")} == {"test"}
    assert before["questions"] == [problem.prompt for problem in TINY.task.problems(12, seed=1, split="test")]
    assert len({weights(path.parent) for path in done.glob("*-[12]/evaluation.json")}) == 4  # each has moved its way
    assert load_size(done / "grpo-1") == TINY


def test_a_finished_run_is_not_repeated_and_another_plan_is_refused(done):
    stamps = {path: path.stat().st_mtime_ns for path in done.rglob("*")}
    runner.run_study(PLAN, done)
    assert {path: path.stat().st_mtime_ns for path in done.rglob("*")} == stamps
    with pytest.raises(ValueError, match="grpo-1 holds a run with other settings; choose another --output"):
        runner.run_study(replace(PLAN, settings={"max_steps": 3}), done)
    with pytest.raises(ValueError, match="warm-start holds a run with other size, split"):
        runner.run_study(replace(PLAN, size=replace(TINY, width=16), split="held_out"), done)


def test_results_are_those_of_the_files(done):
    results = read_results(PLAN, done)
    assert results.seeds == (1, 2)
    evaluation = json.loads((done / "policy_split-2" / "evaluation.json").read_text())
    high = evaluation["modes"]["high_entropy"]
    for name, expected in (
        ("accuracy", high["accuracy"]["mean"]),
        ("pass@8", high["pass_at_k"]["8"]["mean"]),
        ("distinct_correct_8", high["distinct_correct"]["mean"]),  # 8 of 8 responses
        ("kl", evaluation["kl_high_normal"]["mean"]),
    ):
        assert results.values("policy_split", name, "high_entropy")[1] == pytest.approx(expected, abs=1e-12)
    rows = [json.loads(line) for line in (done / "grpo-1" / "metrics.jsonl").read_text().splitlines()]
    assert results.runs["grpo"][1].curves["normal/entropy"] == [row["normal/entropy"] for row in rows]
    assert results.runs["grpo"][1].tokens == rows[-1]["num_tokens"]
    fewer = read_results(replace(PLAN, seeds=(1, 2, 3)), done)
    assert fewer.seeds == (1, 2)  # the third is not finished for anything
    with pytest.raises(ValueError, match="no seed is finished for all of grpo"):
        read_results(replace(PLAN, seeds=(3,)), done)


def test_the_command_writes_the_document(done, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(command.PLANS, "main", PLAN)
    own = tmp_path / "own.json"
    own.write_text('{"mine": {"eta": 0.1}}')
    target = tmp_path / "study.md"
    arguments = ["study", "--output", str(done), "--document", str(target), "--own", str(own), "--seeds", "2", "1"]
    assert main(arguments) == 0
    text = target.read_text()
    assert capsys.readouterr().out.startswith(text)
    accuracy = read_results(PLAN, done).values("grpo", "accuracy", "normal")
    mean, half = sum(accuracy) / 2, estimate(accuracy).high - sum(accuracy) / 2
    assert f"{mean:.3f} ±{half:.3f}" in text
    for words in ("| mine ", "the 'test' split", "![Entropy, reward and KL over the steps](study.svg)", "eta=0.1"):
        assert words in text
    curves = (tmp_path / "study.svg").read_text()
    assert curves.count("<svg") == 1
    assert "Policy Split, high-entropy" in curves
    data = json.loads((tmp_path / "data" / "study.json").read_text())
    assert data["about"].startswith("written by policy-split study --output")
    runs = [read_results(PLAN, done).runs["grpo"][seed].curves["normal/entropy"] for seed in (1, 2)]
    means = sorted(sum(run) / len(run) for run in runs)
    first = data["curves"][0]
    assert (first["variant"], first["panel"], first["steps"]) == ("grpo", "entropy", [4])
    assert first["mean"] + first["low"] + first["high"] == pytest.approx([sum(means) / 2, *means], rel=1e-4)
    main(arguments)
    assert (tmp_path / "study.svg").read_text() == curves


@pytest.mark.parametrize("alone", ["grpo", "policy_split", "held_kl"])
def test_one_variant_alone_has_a_document_without_comparisons(done, alone):
    results, plan = read_results(PLAN, done), replace(PLAN, variants=chosen_variants([alone], 0.6))
    of = "grpo" if alone == "grpo" else "policy_split"
    text = document(plan, replace(results, runs={alone: results.runs[of]}), command="x", figure="f", data="d")
    for title in ("What the paper says", "without it"):
        assert title not in text
    assert ("## Differences" in text) == (alone == "grpo")
    assert f"{sum(results.values(of, 'accuracy', 'normal')) / 2:.3f} ±" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--variants", "grop"], "variant 'grop' must be one of 'grpo', 'entropy_bonus'"),
        (["--seeds", "1", "1"], "each seed once"),
        (["--jobs", "0"], "jobs=0 must be at least 1"),
        (["--own", "missing.json"], "missing.json"),
        (["--plan", "words"], "SmolLM2-135M-Instruct.Q4_1.gguf: there is no such folder"),
        (["--plan", "words", "--model", "/no/such"], "/no/such: there is no such folder"),
        (["--plan", "words", "--warm-start-steps", "3"], "--warm-start-steps is not of --plan words"),
        (["--plan", "cpu", "--model", "x/y"], "--model is not of --plan cpu"),
    ],
)
def test_wrong_arguments_are_said_in_one_line(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["study", *arguments]) == 2
    errors = capsys.readouterr().err
    assert said in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_run_that_fails_says_why_and_leaves_no_process(done, tmp_path):
    shutil.copytree(done / "warm-start", tmp_path / "runs" / "warm-start")
    (tmp_path / "runs" / "warm-start" / "train" / "state.json").unlink()
    with pytest.raises(ChildProcessError, match=r"grpo-1 ended with 1: FileNotFoundError: .*state.json"):
        runner.run_study(replace(PLAN, jobs=1), tmp_path / "runs")
    assert not children()
    plan = replace(PLAN, variants=(replace(PLAN.variants[0], settings={"algorithm": "grpo", "learning_rate": -1}),))
    with pytest.raises(ValueError, match="learning_rate=-1 must be"):
        runner.run_study(plan, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def children():
    own = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return [pid for pid in own if b"policy_split.study.work" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_a_stopped_study_goes_on_to_the_same_weights(done, tmp_path):
    """--minutes in the middle of a run, then SIGKILL of everything, then to the end."""
    folder = tmp_path / "runs"
    shutil.copytree(done / "warm-start", folder / "warm-start")
    script = tmp_path / "study.py"
    script.write_text(
        "import sys, study_plan\nfrom policy_split.commands import study as command\n"
        "from policy_split.commands.main import main\n"
        "command.PLANS['main'] = study_plan.PLAN\n"
        "if __name__ == '__main__':\n    sys.exit(main(['study', *sys.argv[1:]]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(study_plan.__file__).parent)}
    base = [sys.executable, str(script), "--output", str(folder), "--jobs", "1"]
    process = subprocess.Popen(base, env=environment, stderr=subprocess.DEVNULL)
    wait_for(lambda: list(folder.glob("grpo-1/checkpoints/checkpoint-*")))
    running = [int(path.name) for path in Path("/proc").glob("[0-9]*") if mine(path, folder)]
    assert len(running) == 1
    for pid in (process.pid, *running):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    stopped = subprocess.run([*base, "--minutes", "0.12"], env=environment, capture_output=True, text=True)
    assert stopped.returncode == 3, stopped.stderr
    assert "are not finished; the same command goes on" in stopped.stderr
    assert not [path for path in Path("/proc").glob("[0-9]*") if mine(path, folder)]
    runner.run_study(PLAN, folder)
    for run in ("grpo-1", "policy_split-2"):
        assert weights(folder / run) == weights(done / run)


def mine(process, folder):
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"policy_split.study.work" in words and any(str(folder).encode() in word for word in words)


def wait_for(condition, seconds=120):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


def test_differences_are_those_of_the_paired_t_test():
    ours, theirs = [0.52, 0.55, 0.51, 0.58, 0.53], [0.50, 0.49, 0.52, 0.51, 0.50]
    result, expected = difference(ours, theirs), stats.ttest_rel(ours, theirs)
    assert result.p_value == pytest.approx(expected.pvalue, rel=1e-12)
    interval = expected.confidence_interval(0.95)
    assert (result.low, result.high) == pytest.approx((interval.low, interval.high), rel=1e-12)
    assert difference([1, 2], [1, 2]) == (0.0, 0.0, 0.0, 1.0)
    assert difference([1, 2], [0, 1]) == (1.0, 1.0, 1.0, 0.0)
    # the same up to rounding: 0.3 - 0.1 is not 0.4 - 0.2 to the last digit
    assert difference([0.3, 0.4], [0.1, 0.2]) == (pytest.approx(0.2), pytest.approx(0.2), pytest.approx(0.2), 0.0)
    assert difference([0.3, 0.1 + 0.2], [0.3, 0.3]).p_value == 1.0
    one = difference([0.5], [0.25])
    assert one.mean == 0.25
    assert all(map(math.isnan, one[1:]))
    assert math.isnan(estimate([0.5]).high)
    assert estimate([1.0, 1.0]) == (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="2 and 1 seeds"):
        difference([1, 2], [1])


def test_variants_are_settings_that_the_trainer_takes():
    for plan in PLANS.values():
        for variant, seed in plan.runs:
            PolicySplitConfig(**plan.run_spec(variant, seed)["settings"])
    assert {*SEEDS, *SPLIT_SEEDS}.isdisjoint(range(100))  # settings were chosen with the others
    assert [v.name for v in BASELINES] == [v.settings["algorithm"] for v in BASELINES]
    assert len(NAMES) == len(set(NAMES)) == 25
    ablations = chosen_variants(ABLATIONS, 0.3)
    assert all(variant.dual_mode and variant.ablation for variant in ablations)
    assert {variant.settings["eta"] for variant in ablations if "eta" not in ABLATIONS[variant.name][1]} == {0.3}
    assert PLANS["full"].warm_start_spec() == PLANS["split"].warm_start_spec()  # they share their folder
    specs = {(variant.name, seed): PLANS["full"].run_spec(variant, seed) for variant, seed in PLANS["full"].runs}
    assert all(specs[v.name, seed] == PLANS["split"].run_spec(v, seed) for v, seed in PLANS["split"].runs)


def test_sizes_come_back_from_their_files(tmp_path):
    for size in SIZES.values():
        save_size(size, tmp_path)
        assert load_size(tmp_path) == size
        assert size.settings["max_completion_length"] == 2 * size.task.numbers
        PolicySplitConfig(**size.settings)
    assert load_size(tmp_path / "missing") is None
    with pytest.raises(ValueError, match="size='huge' must be one of 'minute', 'small'"):
        find_size("huge")


def test_runs_are_measured_on_the_way_as_at_their_end(done):
    results = read_results(PLAN, done)
    points = results.runs["policy_split"][1].milestones
    assert [point.step for point in points] == [0, 2, 4]
    assert points[0].evaluation == results.before
    rows = [json.loads(line) for line in (done / "policy_split-1" / "metrics.jsonl").read_text().splitlines()]
    assert points[1].tokens == rows[1]["num_tokens"] < points[2].tokens == rows[3]["num_tokens"]
    assert points[1].seconds == pytest.approx(rows[0]["step_time"] + rows[1]["step_time"])
    assert points[2].training == pytest.approx(sum(row["normal/reward"] for row in rows) / 4)
    assert points[2].dead == pytest.approx(sum(row["policy_split/bonus_dead_frac"] for row in rows) / 4)
    assert points[2].evaluation == json.loads((done / "policy_split-1" / "evaluation.json").read_text())
    on_the_way = json.loads((done / "policy_split-1" / "evaluation-2.json").read_text())
    assert "per_question" not in on_the_way
    assert on_the_way["modes"] != points[2].evaluation["modes"]


def test_what_is_finished_is_written_when_time_is_over(done, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "runs"
    shutil.copytree(done, folder)
    monkeypatch.setitem(command.PLANS, "main", PLAN)
    assert main(["study", "--output", str(folder), "--seeds", "1", "2", "7", "--minutes", "0"]) == 3
    assert "2 of 2 runs are not finished; the same command goes on" in capsys.readouterr().err
    text = (folder / "study.md").read_text()
    assert "seeds 1, 2. 4 of 6 runs are finished." in text
    for title in ("At equal steps: 4 steps", "At equal generated tokens", "At equal seconds", "p of all (Holm)"):
        assert title in text
    shutil.rmtree(folder / "grpo-1")
    assert main(["study", "--output", str(folder), "--seeds", "1", "--minutes", "0"]) == 3
    assert "no document yet: " in capsys.readouterr().err
