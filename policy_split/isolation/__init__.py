"""Functions that may hang, eat memory or crash, called in a process apart or within a time limit.

Begin with `isolated.py`. Imports nothing of the project.
"""
