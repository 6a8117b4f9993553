"""A rollout: responses of both modes, shared by token ids, scored, and what is measured on them.

Begin with `rollout.py`. Imports rewards, models, data and what is below them.
"""
