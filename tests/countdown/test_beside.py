"""Plain GRPO beside the two modes: from the same weights, with as many responses, gone on with, honestly compared."""

import json
from dataclasses import replace

import pytest

from policy_split.commands.train_arguments import parse
from policy_split.config import PolicySplitConfig
from policy_split.countdown import job
from policy_split.countdown.beside import compared
from policy_split.countdown.problems import Countdown
from policy_split.countdown.sizes import CountdownSize
from policy_split.training.trainer import PolicySplitTrainer

SIZE = CountdownSize(
    Countdown(numbers=2, largest=9, largest_target=20, fewest_answers=1),
    width=32,
    layers=1,
    train_questions=40,
    held_out_questions=6,
    warm_start_examples=50,
    warm_start_steps=20,
)
OPTIONS = {"max_steps": 3, "prompts_per_step": 4, "num_generations": 2, "save_steps": 1, "sample_steps": 0}


def ran(folder, **options):
    settings = {
        **SIZE.settings,
        **OPTIONS,
        "use_cpu": True,
        "disable_tqdm": True,
        "target_kl": 0.2,
        "regularizer": "loss",
    }
    config = PolicySplitConfig(**settings, output_dir=str(folder), overwrite_output_dir=options.pop("overwrite", False))
    return job.run_countdown(config, SIZE, beside=True, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("job") / "whole"
    return folder, ran(folder)


def without_seconds(results):
    return {**results, "seconds": None, "grpo": {**results["grpo"], "seconds": None}}


def test_grpo_asks_as_much_from_the_same_start(whole):
    folder, results = whole
    assert json.loads((folder / "results.json").read_text()) == results
    rows = {name: (folder / name / "metrics.jsonl").read_text().splitlines() for name in (".", "grpo")}
    assert len(rows["."]) == len(rows["grpo"]) == 3
    config = json.loads(json.dumps(PolicySplitConfig(**SIZE.settings).__dict__, default=str))
    assert config["algorithm"] == "policy_split"
    assert "algorithm: grpo" in (folder / "grpo" / "config.yaml").read_text()
    first = {name: json.loads(lines[0]) for name, lines in rows.items()}
    assert first["grpo"]["num_tokens"] == pytest.approx(first["."]["num_tokens"], rel=0.3)
    assert results["grpo"]["num_tokens"] == json.loads(rows["grpo"][-1])["num_tokens"]
    assert results["num_tokens"] == json.loads(rows["."][-1])["num_tokens"]
    assert (folder / "grpo" / "model.safetensors").read_bytes() != (folder / "model.safetensors").read_bytes()
    table = (folder / "table.md").read_text()
    assert compared(results) in table
    assert f"GRPO generated {results['grpo']['num_tokens']:,} tokens" in table


def test_a_job_stopped_in_either_training_goes_on_to_the_same(whole, tmp_path, monkeypatch):
    _, results = whole
    step, made = PolicySplitTrainer.step, []

    def stops_in(algorithm):
        def stepped(run):
            if run.config.algorithm == algorithm and run.progress.step == 1:
                raise KeyboardInterrupt
            made.append(run.config.algorithm)
            return step(run)

        return stepped

    for algorithm in ("policy_split", "grpo"):
        monkeypatch.setattr(PolicySplitTrainer, "step", stops_in(algorithm))
        with pytest.raises(KeyboardInterrupt):
            ran(tmp_path / "cut", resume=bool(made))
    monkeypatch.setattr(PolicySplitTrainer, "step", step)
    assert without_seconds(ran(tmp_path / "cut", resume=True)) == without_seconds(results)
    assert made == ["policy_split"] * 3 + ["grpo"]
    again = ran(tmp_path / "cut", resume=True)  # nothing is left to do
    assert without_seconds(again) == without_seconds(results)
    over = ran(tmp_path / "cut", overwrite=True)
    assert without_seconds(over) == without_seconds(results)


def test_who_is_ahead_is_said_of_each_measure():
    def mode(accuracy, best, different, entropy):
        return {"accuracy": accuracy, "best_of_n": best, "distinct_correct": different, "entropy": entropy}

    results = {
        "after": {"normal": mode(0.5, 0.7, 1.0, 0.1), "high_entropy": mode(0.4, 0.7, 1.2, 0.2), "num_samples": 8},
        "grpo": {"after": {"normal": mode(0.6, 0.6, 0.7, 0.05)}, "num_tokens": 1234567, "seconds": 61.4},
        "num_tokens": 1200000,
    }
    text = compared(results)
    assert "- accuracy: GRPO\n" in text
    assert "- best of 8: normal mode and high-entropy mode\n" in text
    assert "- different correct of 8: high-entropy mode\n" in text
    assert "GRPO generated 1,234,567 tokens, Policy Split 1,200,000; its steps took 61 s." in text


def test_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = parse([])
    assert asked.beside
    assert asked.size is not None
    assert (asked.size.task.largest, asked.config.max_steps, asked.config.fresh_questions) == (40, 400, True)
    assert asked.size.train_questions == asked.config.max_steps * asked.config.prompts_per_step
    assert not parse(["--alone"]).beside
    assert not parse(["--algorithm", "grpo"]).beside
    assert replace(asked.size, own_settings={}).settings["max_steps"] == 400
