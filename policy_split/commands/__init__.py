"""The command line, one module a command: nothing else reads arguments.

Begin with `main.py`. Imports everything below; nothing imports it.
"""
