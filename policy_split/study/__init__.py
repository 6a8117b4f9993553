"""The comparison of algorithms on the built-in task: same warm start, same number of responses, several seeds.

Begin with `plan.py` (what is run) and `document.py` (what is written). Imports countdown and what is below it.
"""
