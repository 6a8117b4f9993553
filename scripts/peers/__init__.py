"""The peers' own tests, run with our functions in the place of theirs: `python -m scripts.peers` (make peers)."""
