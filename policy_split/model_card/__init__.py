"""What goes with a trained model to whoever uses it: its card and its prompts.

Begin with `card.py`. It may import what stands below it in the list of the house: run_folder/ and further down.
"""
