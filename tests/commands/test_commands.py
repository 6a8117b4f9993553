"""The commands as a user gives them: real runs, small, and what is said when an argument is wrong."""

import json
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import tiny
from transformers import AutoModelForCausalLM

from policy_split.commands import train_arguments
from policy_split.commands.main import main
from policy_split.config import PolicySplitConfig
from policy_split.countdown import job
from policy_split.countdown.sizes import SIZES
from policy_split.training.trainer import PolicySplitTrainer

SMALL = SIZES["small"]
QUICK = ["--use_cpu", "true", "--disable_tqdm", "true", "--max_steps", "2", "--save_steps", "0"]


@pytest.fixture
def saved(tmp_path):
    """A model, a dataset and a reward as files: what `--model NAME --dataset DATA --reward FILE` takes."""
    tiny.model().save_pretrained(tmp_path / "model")
    tiny.tokenizer(chat=True).save_pretrained(tmp_path / "model")
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in tiny.QUESTIONS))
    (tmp_path / "rewards.py").write_text(
        "def reward(prompts, completions, **columns):\n    return [1.0] * len(prompts)\n"
    )
    return {
        "--model": str(tmp_path / "model"),
        "--dataset": str(tmp_path / "questions.jsonl"),
        "--reward": f"{tmp_path / 'rewards.py'}:reward",
        "--output_dir": str(tmp_path / "run"),
    }


def arguments(options):
    return ["train", *(part for option in options.items() for part in option), *QUICK, "--max_completion_length", "4"]


def test_train_a_model_by_name(saved, tmp_path, capsys):
    assert main(arguments(saved)) == 0
    assert f"results: {tmp_path / 'run'}" in capsys.readouterr().out
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [1, 2]
    assert all(0 <= step[f"{mode}/entropy"] < 10 for step in steps for mode in ("normal", "high_entropy"))
    AutoModelForCausalLM.from_pretrained(tmp_path / "run")


def test_evaluation_data_are_used(saved, tmp_path):
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join(json.dumps(question) + "\n" for question in tiny.HELD_OUT))
    options = {**saved, "--eval_dataset": str(held_out), "--eval_steps": "2", "--eval_num_samples": "2"}
    assert main(arguments(options)) == 0
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["eval/normal/accuracy"] == 1.0


def last_step(folder):
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_exits_130_and_the_run_is_resumed(saved, tmp_path, capsys, number):
    (tmp_path / "rewards.py").write_text(
        "import os\ndef reward(prompts, completions, **columns):\n"
        f"    os.kill(os.getpid(), {int(number)})\n    return [1.0] * len(prompts)\n"
    )
    assert main(arguments(saved)) == 130
    assert "policy-split train: stopped after step 1 of 2, which is saved" in capsys.readouterr().err
    (tmp_path / "rewards.py").write_text("def reward(prompts, **columns): return [1.0] * len(prompts)\n")
    assert main([*arguments(saved), "--resume"]) == 0
    assert last_step(tmp_path / "run") == 2


def test_ctrl_c_of_a_process_exits_130(saved, tmp_path):
    (tmp_path / "rewards.py").write_text(
        "import time\ndef reward(prompts, completions, **columns):\n    print('here', flush=True)\n    time.sleep(30)\n"
    )
    command = [sys.executable, "-m", "policy_split", *arguments(saved)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGINT)
        assert any("SIGINT: finishing the step" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        assert "policy-split train: stopped at once" in process.stderr.read()
    assert process.returncode == 130


def test_a_run_killed_before_its_first_checkpoint_starts_over(saved, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/metrics.jsonl").write_text('{"step": 1}\n{"step": 2')
    assert main([*arguments(saved), "--resume"]) == 0
    assert "no checkpoint yet, the run starts over" in capsys.readouterr().err
    assert last_step(tmp_path / "run") == 2
    assert main([*arguments(saved), "--resume"]) == 2  # it has ended, without checkpoints: not done again
    assert "there is no checkpoint" in capsys.readouterr().err


def test_a_failing_reward_function_is_said_with_its_sample(saved, tmp_path, capsys):
    (tmp_path / "rewards.py").write_text("def reward(completions, **columns): raise LookupError('mine')\n")
    assert main(arguments(saved)) == 2
    assert "error: mine; reward function reward, sample 0 (" in capsys.readouterr().err


def test_the_main_job_writes_what_it_measured(tmp_path):
    settings = {**SMALL.settings, "max_steps": 1, "prompts_per_step": 8, "num_generations": 2}
    config = PolicySplitConfig(**settings, output_dir=str(tmp_path / "run"), use_cpu=True, disable_tqdm=True)
    results = job.run_countdown(config, replace(SMALL, warm_start_steps=3, held_out_questions=8))
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results
    table = (tmp_path / "run" / "table.md").read_text()
    assert table.strip() == job.report(results)
    for words in (
        "accuracy",
        "best of 8",
        "different correct of 8",
        "entropy (nats/token)",
        "KL(high-entropy || normal)",
    ):
        assert words in table
    again = PolicySplitConfig(**settings, output_dir=str(tmp_path / "again"), use_cpu=True, disable_tqdm=True)
    repeated = job.run_countdown(again, replace(SMALL, warm_start_steps=3, held_out_questions=8))
    assert (repeated["before"], repeated["after"]) == (results["before"], results["after"])


def test_the_main_job_goes_on_after_a_stop(tmp_path, monkeypatch):
    size = replace(SMALL, train_questions=50, held_out_questions=4, warm_start_examples=50, warm_start_steps=2)
    settings = {**SMALL.settings, "max_steps": 2, "prompts_per_step": 4, "num_generations": 2, "save_steps": 1}

    def ran(name, *, resume=False):
        config = PolicySplitConfig(**settings, output_dir=str(tmp_path / name), use_cpu=True, disable_tqdm=True)
        return job.run_countdown(config, size, resume=resume)

    def stops(*_, **__):
        raise KeyboardInterrupt

    whole = ran("whole")
    warm_start, step = job.warm_start, PolicySplitTrainer.step
    monkeypatch.setattr(job, "warm_start", stops)
    with pytest.raises(KeyboardInterrupt):
        ran("cut")
    monkeypatch.setattr(job, "warm_start", warm_start)  # nothing to go on from: starts over
    monkeypatch.setattr(PolicySplitTrainer, "step", lambda run: stops() if run.progress.step else step(run))
    with pytest.raises(KeyboardInterrupt):
        ran("cut", resume=True)
    monkeypatch.setattr(job, "warm_start", stops)  # not done twice
    monkeypatch.setattr(PolicySplitTrainer, "step", step)
    resumed = ran("cut", resume=True)
    assert (resumed["before"], resumed["after"]) == (whole["before"], whole["after"])
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert models[0] == models[1]


def test_the_report_says_what_did_not_hold():
    mode = {"accuracy": 0.5, "best_of_n": 0.8, "distinct_correct": 2.0, "entropy": 0.5, "mean_length": 6.0}
    result = {"normal": mode, "high_entropy": mode, "num_samples": 8, "num_prompts": 512}
    result |= {"kl_high_normal": 0.01, "kl_normal_high": 0.01}
    better = {**result, "normal": {**mode, "accuracy": 0.6}, "kl_high_normal": 0.2}
    better["high_entropy"] = {**mode, "entropy": 0.7}
    report = job.report({"before": result, "after": better, "seconds": {"training": 1.0}})
    assert "- yes: normal-mode accuracy went up" in report
    assert "- yes: KL(high-entropy || normal) grew 0.0100 -> 0.200, 20 times (at least 10)" in report
    assert "- NO: KL(normal || high-entropy) grew 0.0100 -> 0.010, 1 times (at least 10)" in report
    assert "- yes: the high-entropy mode has the higher entropy" in report
    assert "- NO: the high-entropy mode gives more different correct answers" in report
    whole = {"before": result, "after": better, "seconds": {"training": 1.0}, "algorithm": "grpo"}
    assert "yes:" not in job.report(whole)  # a baseline promises no split


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--dataset": None}, "--model needs --dataset as well"),
        ({"--reward": None}, "--model needs --reward as well"),
        ({"--model": None}, "--dataset needs --model"),
        ({"--dataset": "/no/such/file.jsonl"}, "/no/such/file.jsonl: there is no such file"),
        ({"--model": "/no/such/model"}, "/no/such/model"),
        ({"--reward": "no_such_module:reward"}, "no_such_module"),
        ({"--kappa": "-1"}, "kappa=-1.0 must be above 0"),
        ({"--epsilon": "-0.1"}, "epsilon=-0.1 must be between 0 and 1"),
        ({"--max_prompt_length": "1"}, "max_prompt_length=1"),
    ],
)
def test_wrong_arguments_are_said_in_one_line(saved, tmp_path, capsys, change, words):
    options = {name: value for name, value in {**saved, **change}.items() if value is not None}
    assert main(arguments(options)) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("policy-split train: error: ")
    assert words in said
    assert not (tmp_path / "run").exists()


def test_usage(capsys):
    assert main(["--help"]) == 0
    assert "policy-split train" in capsys.readouterr().out
    assert main([]) == 2
    assert main(["fly"]) == 2


def test_installed_command_explains_its_settings():
    command = [sys.executable, "-m", "policy_split", "train", "--help"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for setting in ("--model", "--dataset", "--reward", "--eta", "--share_correction", "--num_generations"):
        assert setting in said


def test_the_loss_is_imported_without_the_trainers_libraries():
    code = "import policy_split, sys; sys.exit('transformers' in sys.modules or 'datasets' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_earlier_run_is_not_written_over(tmp_path):
    assert train_arguments.free_folder(str(tmp_path / "run")) == str(tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run-2").mkdir()
    assert train_arguments.free_folder(str(tmp_path / "run")) == str(tmp_path / "run-3")
    assert train_arguments.newest_folder(str(tmp_path / "run")) == str(tmp_path / "run-2")
    assert train_arguments.newest_folder(str(tmp_path / "other")) == str(tmp_path / "other")
