"""Logits that are a DTensor over two real processes: by tokens, by the vocabulary, replicated, and what is refused."""

from processes import run_in_processes


def test_two_processes(tmp_path):
    run_in_processes("sharded_logits_processes.py", 2, tmp_path)
