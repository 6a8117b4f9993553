"""A run with vLLM that is killed and resumed draws the same responses, and ends with the same weights."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny


def start(folder, killed_at=0):
    script = Path(tiny.__file__).with_name("vllm_process.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parent)}
    command = [sys.executable, script, folder, str(killed_at)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.timeout(900)  # three starts of vLLM, on a machine that may be busy
def test_a_killed_run_draws_the_same_when_it_is_resumed(tmp_path):
    whole, parts = start(tmp_path / "whole"), start(tmp_path / "parts", killed_at=3)
    assert parts.wait(400) == -signal.SIGKILL, parts.stdout.read()
    assert len((tmp_path / "parts/metrics.jsonl").read_text().splitlines()) == 2
    resumed = start(tmp_path / "parts")
    for process in (whole, resumed):
        assert process.wait(400) == 0, process.stdout.read()
    for name in ("completions.jsonl", "model.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    assert len((tmp_path / "whole/completions.jsonl").read_text().splitlines()) == 4 * 24
