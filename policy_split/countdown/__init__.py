"""The built-in task: reach a target with some numbers; its problems, sizes, small model and main job.

Begin with `job.py`. Imports training and what is below it.
"""
