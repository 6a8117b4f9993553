"""The model: loading it, its LM head without logits, batches with and without padding, sharded weights.

Begin with `policy.py`, which is what the trainer holds. Imports the settings and what is below them.
"""
