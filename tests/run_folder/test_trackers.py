"""Trackers by `report_to`: the real libraries where they are installed, local and without a network."""

import importlib.util
import json
import sqlite3

import accelerate.tracking
import pytest
import tiny

from policy_split.training.trainer import PolicySplitTrainer

REWARD = "normal/reward"
# what the libraries themselves do not keep to
pytestmark = pytest.mark.filterwarnings("default")


def needs(package):
    return pytest.mark.skipif(not importlib.util.find_spec(package), reason=f"{package} is not installed")


def train(folder, steps, *, report_to, resume=False, **options):
    config = tiny.config(folder, max_steps=steps, lr_scheduler_type="constant", report_to=report_to, **options)
    trainer = PolicySplitTrainer(tiny.model(), tiny.tokenizer(), tiny.reward, tiny.QUESTIONS, config)
    trainer.train(resume_from_checkpoint=resume)


def written(folder):
    """The rewards of metrics.jsonl by their steps."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row[REWARD] for row in rows}


def seen_by_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "policy-split")).Reload()
    return [(event.step, event.value) for event in events.Scalars(REWARD)]


@needs("tensorboard")
def test_tensorboard_has_every_step_once(tmp_path):
    run = tmp_path / "run"
    train(run, 3, report_to="tensorboard", save_steps=2)
    assert seen_by_tensorboard(run) == [(step, pytest.approx(value)) for step, value in written(run).items()]
    # the third step is done again, after the checkpoint of the second
    train(run, 4, report_to="tensorboard", save_steps=2, resume=True)
    assert [step for step, _ in seen_by_tensorboard(run)] == [1, 2, 3, 4]
    train(run, 2, report_to="tensorboard", overwrite_output_dir=True)
    assert [step for step, _ in seen_by_tensorboard(run)] == [1, 2]


@needs("tensorboard")
def test_logging_steps_and_the_settings(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tmp_path, 3, report_to="none,tensorboard", logging_steps=2)
    assert [step for step, _ in seen_by_tensorboard(tmp_path)] == [2]
    folders = {path.parent for path in (tmp_path / "policy-split").rglob("events*")}
    tags = [EventAccumulator(str(folder)).Reload().Tags()["tensors"] for folder in folders]
    assert tags  # readable, each of them
    settings = next((tmp_path / "policy-split").rglob("hparams.yml")).read_text()
    assert "max_steps: 3" in settings


@needs("wandb")
def test_wandb_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    train(tmp_path / "run", 2, report_to="wandb")
    assert not (tmp_path / "wandb").exists()  # in the run's folder, not in this one
    files = list((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 1
    content = files[0].read_bytes()
    assert all(word in content for word in (b"high_entropy/reward", b"kl_high_normal", b"per_device_train_batch_size"))


@needs("trackio")
def test_trackio_goes_on_with_a_resumed_run(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    train(tmp_path / "run", 2, report_to="trackio", save_steps=2)
    train(tmp_path / "run", 3, report_to="trackio", save_steps=2, resume=True)
    with sqlite3.connect(next((tmp_path / "trackio").glob("*.db"))) as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY step").fetchall()
    database.close()
    assert [(name, step) for name, step, _ in rows] == [("run", 1), ("run", 2), ("run", 3)]
    assert {step: json.loads(metrics)[REWARD] for _, step, metrics in rows} == pytest.approx(written(tmp_path / "run"))


@needs("tensorboard")
def test_a_tracker_that_does_not_start_is_said(tmp_path, monkeypatch):
    def fails(self):
        raise RuntimeError("no key")

    monkeypatch.setattr(accelerate.tracking.TensorBoardTracker, "start", fails)
    with pytest.raises(ValueError, match=r"report_to='tensorboard': a tracker did not start \(RuntimeError: no key\)"):
        train(tmp_path / "run", 1, report_to="tensorboard")
