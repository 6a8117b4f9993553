"""The loop in the order in which it runs, the update, and the warm start.

Begin with `trainer.py`. Imports everything below but the integrations and the report.
"""
