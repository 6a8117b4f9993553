"""Policy Split on the engines of others, one folder each, imported only by who uses it: `trl`, `verl`.

Imports algorithms, models, rollouts and what is below them; nothing below knows these frameworks.
"""
