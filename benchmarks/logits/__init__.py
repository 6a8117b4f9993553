"""Kernels on logits: ours, torch and the peers, checked, then timed in one interleaved run."""
