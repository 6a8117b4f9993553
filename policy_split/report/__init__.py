"""What a run looks like: one HTML file of curves, tables and samples.

Begin with `build.py`. Imports evaluation and what is below it.
"""
