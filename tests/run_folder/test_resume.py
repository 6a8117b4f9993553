"""Nothing lost: a killed run goes on from its newest whole checkpoint, bit for bit as if undisturbed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from accelerate import Accelerator
from run_files import STEPS
from trained import trainer

from policy_split.run_folder import checkpoints


@pytest.mark.timeout(900)  # thirty lives of a second each, on a machine that may have little time for them
def test_a_process_killed_at_twenty_moments_and_resumed_ends_with_the_same_weights(tmp_path):
    script = Path(tiny.__file__).with_name("kill_process.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parent)}
    command = [sys.executable, script, tmp_path, "20", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=850, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["timer"], told["file operation"]) == (10, 10)
    assert told["while saving"] >= 2
    assert told["resumed"] >= 5


def test_a_run_folder_is_understood_without_the_code(tmp_path):
    trainer(tmp_path, **STEPS).train()
    settings = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert settings["save_steps"] == 1
    assert settings["high_entropy_prompt"] == "explore"
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__
    assert environment["command"] == sys.argv
    assert {path.name for path in tmp_path.iterdir()} >= {"metrics.jsonl", "checkpoints", "model.safetensors"}


def test_sharded_models_are_refused_before_the_first_step(tmp_path, monkeypatch):
    from accelerate import DistributedType

    run = trainer(tmp_path, save_steps=1)
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(NotImplementedError, match="sharded by FSDP"):
        run.train()
    assert not (tmp_path / "metrics.jsonl").exists()


def test_only_a_run_without_a_checkpoint_and_without_a_result_starts_over(tmp_path):
    assert checkpoints.stopped_before_first(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    assert checkpoints.stopped_before_first(tmp_path)
    (tmp_path / "config.json").write_text("{}")  # the final model's
    assert not checkpoints.stopped_before_first(tmp_path)
