"""The method and its rivals as pure functions of tensors: advantages, bonuses, token losses, and their table.

Begin with `advantages.py` (Policy Split, arXiv 2604.11510) and `table.py` (what each algorithm changes in GRPO).
Imports torch alone.
"""
