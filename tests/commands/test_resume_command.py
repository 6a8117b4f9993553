"""`policy-split train --resume`: a run's folder says all that is needed, and what differs is not passed over."""

import json
import shutil

import pytest
import saved_task
import yaml
from huggingface_hub import constants

from policy_split.commands import main as cli
from policy_split.countdown import job as countdown_job
from policy_split.training.trainer import PolicySplitTrainer


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    task = saved_task.save(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        options = ["--output_dir", "run", "--max_steps", "2", "--save_steps", "2", "--learning_rate", "0.01"]
        options += ["--lr_scheduler_type", "constant"]
        assert cli.main(["train", *task, *options]) == 0
    return folder, task


@pytest.fixture
def somewhere(first, tmp_path, monkeypatch):
    """A copy of a run of two steps, in a working directory that has nothing else of it."""
    shutil.copytree(first[0] / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(*arguments):
    return cli.main(["train", *map(str, arguments)])


@pytest.mark.parametrize("named", [["--resume", "run"], ["--resume", "--output_dir", "run"]])
def test_alone_it_finds_model_questions_and_rewards(somewhere, named):
    assert train(*named, "--max_steps", "3") == 0
    rows = saved_task.rows(somewhere / "run")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert [row["learning_rate"] for row in rows] == [0.01] * 3  # as it was, not the default
    said = yaml.safe_load((somewhere / "run/config.yaml").read_text())
    assert (said["max_steps"], said["model"].endswith("/model"), said["reward"][0][-17:]) == (
        3,
        True,
        "rewards.py:reward",
    )


def test_flags_that_may_change_take_effect(somewhere):
    assert train("--resume", "run", "--max_steps", "3", "--learning_rate", "1e-4", "--save_steps", "1") == 0
    assert [row["learning_rate"] for row in saved_task.rows(somewhere / "run")] == [0.01, 0.01, 1e-4]
    assert (somewhere / "run/checkpoints/checkpoint-3").is_dir()


def test_flags_that_may_not_are_refused_with_both_values_and_taken_regardless(somewhere, capsys):
    given = ["--resume", "run", "--max_steps", "3", "--temperature", "0.5", "--num_generations", "3"]
    assert train(*given) == 2
    said = capsys.readouterr().err
    assert "num_generations: 2 -> 3; temperature: 1.0 -> 0.5; give what it ran with" in said
    assert "--resume_anyway" in said
    with pytest.warns(UserWarning, match=r"goes on with what is not as it was: .*temperature: 1\.0 -> 0\.5"):
        assert train(*given, "--resume_anyway") == 0
    assert len(saved_task.rows(somewhere / "run")) == 3


def test_a_reward_that_was_mended_is_gone_on_with_and_said(somewhere, first, capsys):
    """Once: the next time it is as it was."""
    file = first[0] / "rewards.py"
    before = file.read_text()
    try:
        file.write_text(before + "\n# mended\n")
        assert train("--resume", "run", "--max_steps", "3", "--save_steps", "1") == 0
        said = capsys.readouterr().err
        assert f"{file} is not what it was when the run last started: its steps from now on are graded by" in said
        assert train("--resume", "run", "--max_steps", "4") == 0
        assert "is not what it was" not in capsys.readouterr().err
    finally:
        file.write_text(before)
    assert len(saved_task.rows(somewhere / "run")) == 4


def test_a_file_of_settings_wins_over_the_folder_and_flags_over_it(somewhere):
    (somewhere / "more.yaml").write_text("max_steps: 4\nlearning_rate: 1e-4\n")
    assert train("--resume", "run", "--config", "more.yaml", "--max_steps", "3") == 0
    assert [row["learning_rate"] for row in saved_task.rows(somewhere / "run")] == [0.01, 0.01, 1e-4]


def test_a_run_that_has_ended_is_done_again_by_nobody(somewhere):
    before = (somewhere / "run/metrics.jsonl").read_text()
    assert train("--resume", "run") == 0
    assert (somewhere / "run/metrics.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--resume", "nowhere"], "--resume nowhere: there is no such folder; give --model, --dataset and --reward"),
        (["--resume", "--output_dir", "empty"], "--resume empty: there is no run in it (no config.yaml)"),
        (["--resume", "run", "--output_dir", "other"], "name two folders; give one of them"),
        (["--resume", "--model", "m", "--dataset", "d"], "--resume needs the run's folder: --resume RUN"),
        (
            ["--resume", "run", "--model", "other"],
            "other: there is no such folder, and of that name on the Hugging Face hub",
        ),
        (["--resume", "run/checkpoints/checkpoint-2"], "checkpoint-2: a checkpoint; its run is "),
        (["--resume", "run", "--config", "run"], "--config run: a folder; give run/config.yaml"),
        (["--resume", "run", "--size", "minute"], "--size minute is of the built-in Countdown task"),
    ],
)
def test_what_cannot_be_resumed_is_said(somewhere, capsys, monkeypatch, arguments, said):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # where it is not reached it would be waited for
    (somewhere / "empty").mkdir()
    assert train(*arguments) == 2
    assert said in capsys.readouterr().err


def test_a_run_that_python_has_started_says_what_it_lacks(somewhere, first, capsys):
    path = somewhere / "run/config.yaml"
    settings = yaml.safe_load(path.read_text()) | {"model": None, "reward": None}
    path.write_text(yaml.safe_dump(settings))
    assert train("--resume", "run") == 2
    assert "objects that have no name; give --model, --reward as well" in capsys.readouterr().err
    given = ["--model", first[0] / "model", "--reward", f"{first[0]}/rewards.py:reward"]
    assert train("--resume", "run", *given, "--max_steps", "3") == 0


def test_settings_of_another_version_are_left_aside(somewhere):
    path = somewhere / "run/config.yaml"
    path.write_text(path.read_text() + "of_long_ago: 1\n")
    assert train("--resume", "run", "--max_steps", "3") == 0


def test_a_run_without_its_settings_goes_on_with_a_warning(somewhere, first):
    (somewhere / "run/config.yaml").unlink()
    task = [first[0] / part if (first[0] / part).exists() else part for part in first[1]]
    task = [f"{first[0]}/rewards.py:reward" if part == "rewards.py:reward" else part for part in task]
    with pytest.warns(UserWarning, match=r"run has no config\.yaml: settings that are not given are the defaults"):
        assert train("--resume", "run", *task, "--max_steps", "3") == 0


def test_the_built_in_task_goes_on_as_it_was_started(tmp_path, monkeypatch, capsys):
    """Its size and settings are in the folder too; the newest one is taken."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(countdown_job, "warm_start", lambda *_, **__: None)
    monkeypatch.setattr(PolicySplitTrainer, "evaluate", lambda *_, **__: EVALUATION)
    quick = ["--use_cpu", "true", "--disable_tqdm", "true", "--prompts_per_step", "2", "--num_generations", "2"]
    options = [*quick, "--size", "minute", "--max_steps", "1", "--save_steps", "1", "--eta", "0.25"]
    assert train(*options) == 0
    capsys.readouterr()
    assert train("--resume", "--max_steps", "2") == 0
    folder = tmp_path / "runs/countdown"
    assert [row["step"] for row in saved_task.rows(folder)] == [1, 2]
    said = yaml.safe_load((folder / "config.yaml").read_text())
    assert (said["size"], said["eta"], said["prompts_per_step"]) == ("minute", 0.25, 2)
    assert json.loads((folder / "countdown.json").read_text())["held_out_questions"] == 256
    assert train("--resume", "--eta", "0.5") == 2
    assert "eta: 0.25 -> 0.5" in capsys.readouterr().err
    assert train("--resume", "--size", "small") == 2
    assert "holds a run of another size of the task" in capsys.readouterr().err
    assert train("--output_dir", "runs/countdown", *options) == 2  # before anything takes time
    assert "already holds a run" in capsys.readouterr().err
    assert (folder / "before.json").is_file()


EVALUATION = {
    mode: {"accuracy": 0.5, "best_of_n": 0.5, "distinct_correct": 1.0, "entropy": 0.5, "mean_length": 6.0}
    for mode in ("normal", "high_entropy")
} | {"num_samples": 8, "num_prompts": 4, "kl_high_normal": 0.1, "kl_normal_high": 0.1}
