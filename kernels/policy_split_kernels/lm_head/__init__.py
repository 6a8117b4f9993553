"""The LM head chunk by chunk: library GEMMs around the ops, so that the logits are never there at once.

Begin with `chunks.py`, the order of work. Imports ops, rows and the contract.
"""
