"""Folders and files that are there as a whole or not at all, and the versions that wrote them.

Begin with `whole_folder.py`. Imports nothing of the project.
"""
