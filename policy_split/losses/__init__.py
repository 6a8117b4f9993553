"""The drop-in loss: `dual_mode_loss` on logits, `linear_dual_mode_loss` on hidden states, and their arguments.

Begin with `dual_mode.py`. Imports the kernels.
"""
