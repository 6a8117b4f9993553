"""Settings of the Policy Split trainer, checked once, when they are made: begin with fields.py.

rules.py says what a setting may be by itself, combinations.py what goes with what. Imports algorithms/ and modes.
"""

from .fields import PolicySplitConfig

__all__ = ["PolicySplitConfig"]
