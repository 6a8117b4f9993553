"""A run that goes on with other settings that may change: they take effect, and the folder says what ran."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file
from two_steps import rates, trainer


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first") / "run"
    trainer(folder).train()
    return folder


@pytest.fixture
def run(first, tmp_path):
    """A copy of a run of two steps, which ended with a checkpoint."""
    return shutil.copytree(first, tmp_path / "run")


def test_a_new_learning_rate_is_used_and_said(run):
    resumed = trainer(run, max_steps=4, learning_rate=1e-5, weight_decay=0.0, adam_beta1=0.5, adam_epsilon=1e-6)
    resumed.train(resume_from_checkpoint=True)
    assert rates(run) == [1e-2, 1e-2, 1e-5, 1e-5]
    for group in resumed.optimizer.param_groups:
        assert (group["lr"], group["weight_decay"], group["betas"], group["eps"]) == (1e-5, 0.0, (0.5, 0.999), 1e-6)
    said = yaml.safe_load((run / "config.yaml").read_text())
    assert (said["learning_rate"], said["weight_decay"], said["max_steps"]) == (1e-5, 0.0, 4)


def test_a_learning_rate_of_zero_leaves_the_weights_as_they_are(run):
    trainer(run, max_steps=4, learning_rate=0.0).train(resume_from_checkpoint=True)
    before = load_file(run / "checkpoints/checkpoint-2/model.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in load_file(run / "model.safetensors").items())


def test_weight_decay_is_of_matrices_alone_after_a_resume_too(run):
    resumed = trainer(run, max_steps=3, weight_decay=0.5)
    resumed.train(resume_from_checkpoint=True)
    assert [group["weight_decay"] for group in resumed.optimizer.param_groups] == [0.5, 0.0]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"lr_scheduler_type": "linear", "max_steps": 8}, [1e-2 * (1 - step / 8) for step in range(2, 8)]),
        ({"lr_scheduler_type": "linear", "max_steps": 4, "learning_rate": 4e-3}, [2e-3, 1e-3]),
        ({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 8, "max_steps": 4}, [2.5e-3, 3.75e-3]),
    ],
)  # fmt: skip
def test_a_schedule_is_where_it_would_be_after_as_many_steps(run, options, expected):
    trainer(run, **options).train(resume_from_checkpoint=True)
    assert rates(run)[2:] == pytest.approx(expected)


def test_the_settings_of_then_stand_beside_those_of_now(run):
    first = (run / "config.yaml").read_text()
    trainer(run, max_steps=3, save_steps=1, learning_rate=1e-3).train(resume_from_checkpoint=True)
    second = (run / "config.yaml").read_text()
    assert second.startswith("# from step 3 on; what ran before is in config-1.yaml\n")
    assert (run / "config-1.yaml").read_text() == first
    trainer(run, max_steps=4, save_steps=1, learning_rate=1e-4).train(resume_from_checkpoint=True)
    assert (run / "config-2.yaml").read_text() == second
    assert (run / "config.yaml").read_text().startswith("# from step 4 on; what ran before is in config-2.yaml\n")
    assert sorted(path.name for path in run.glob("config*.yaml")) == ["config-1.yaml", "config-2.yaml", "config.yaml"]
    trainer(run, max_steps=1, overwrite_output_dir=True).train()
    assert sorted(path.name for path in run.glob("config*.yaml")) == ["config.yaml"]


def test_the_same_settings_leave_one_file(run):
    (run / "checkpoints/checkpoint-2").rename(run / "checkpoints/checkpoint-1")  # as if step 2 were yet to be done
    progress = json.loads((run / "checkpoints/checkpoint-1/progress.json").read_text())
    assert progress["progress"]["step"] == 2
    before = (run / "config.yaml").read_text()
    trainer(run).train(resume_from_checkpoint=True)
    assert (run / "config.yaml").read_text() == before
    assert not (run / "config-1.yaml").exists()
