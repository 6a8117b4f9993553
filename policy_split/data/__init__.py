"""Questions: datasets from files, folders, a hub or reasoning-gym, and prompts as token ids.

Begin with `datasets.py`. Imports the settings and what is below them.
"""
