"""An LM head split over real processes: its vocabulary, or the rows of a DTensor."""

import pytest
from processes import run_in_processes


@pytest.mark.parametrize("processes", [2, 4])
def test_processes(tmp_path, processes):
    run_in_processes("linear_processes.py", processes, tmp_path)
