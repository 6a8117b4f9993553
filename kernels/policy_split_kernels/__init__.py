"""Log-probs, entropy, policy loss and divergence straight from logits or hidden states.

Begin with `logprobs.py`, `divergence.py` and `linear.py` (what users call), then `ops.py` (the only door to the columns
`reference`, `cpu` and `gpu`). Imports nothing of policy_split.
"""
