"""What a run writes and how it goes on: checkpoints, state, metrics, trackers.

Begin with `checkpoints.py`. Imports rollouts and what is below them.
"""
