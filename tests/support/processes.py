"""Scripts that run in every process of a group: `SCRIPT RANK PROCESSES FILE`."""

import os
import subprocess
import sys
from pathlib import Path

SAYS = "rank {rank} of {processes}: everything holds"


def run_in_processes(name, processes, tmp_path):
    """What the script asserts, in each process; all of it is printed where one fails."""
    script = Path(__file__).with_name(name)
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(script.parent),
        "POLICY_SPLIT_BACKEND": "auto",
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "error", script, str(rank), str(processes), tmp_path / "meeting"],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(processes)
    ]  # fmt: skip
    try:
        printed = [process.communicate(timeout=150)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    for rank, (process, text) in enumerate(zip(started, printed, strict=True)):
        assert process.returncode == 0, text
        assert SAYS.format(rank=rank, processes=processes) in text
