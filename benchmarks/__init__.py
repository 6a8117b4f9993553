"""Ours against the peers, checked and then timed in one run; results/ has what was measured.

Begin with `gpu.py`, or `make bench-cpu`.
"""
