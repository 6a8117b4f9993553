"""What a policy can do: pass@k, diversity and KL of both modes, with intervals, and two runs compared.

Begin with `evaluate.py`. Imports rollouts, rewards and what is below them.
"""
