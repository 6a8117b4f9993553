"""The built-in creative task: one short sentence that uses given words; its list, inflections, form and questions.

Begin with `questions.py`. The reward, which asks a model how fluent a sentence is, is `rewards/words.py`.
"""
