"""Functions that grade responses: finding them, calling them, checking what they return.

Begin with `functions.py`. Imports data and what is below it.
"""
