"""SIGTERM for a study: its runs end with it, and the same command goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import study_plan

SCRIPT = """
import sys, study_plan
from pathlib import Path
from policy_split.study.runner import run_study
if __name__ == "__main__":
    try:
        run_study(study_plan.PLAN, Path(sys.argv[1]))
    except KeyboardInterrupt as stopped:
        sys.exit(str(stopped))
"""


def works(folder):
    """Process ids of the pieces that run in a folder."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"policy_split.study.work" in words and any(str(folder).encode() in word for word in words):
            found.append(int(place.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/cmdline").is_file(), reason="reads /proc")
def test_sigterm_leaves_no_run_behind(tmp_path):
    script, folder = tmp_path / "study.py", tmp_path / "runs"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(study_plan.__file__).parent)}
    process = subprocess.Popen([sys.executable, script, folder], env=environment, stderr=subprocess.PIPE, text=True)
    limit = time.monotonic() + 120
    while not works(folder):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < limit
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors.splitlines()[-1]) == (1, "stopped by SIGTERM; the same command goes on")
    assert works(folder) == []
