"""The reward that a dataset brings along: of a reasoning-gym task and of the words task."""

from policy_split.data.reasoning_gym import is_gym, own_reward
from policy_split.data.rows import Questions
from policy_split.words.questions import is_words

from .loading import RewardFunction
from .words import WordsReward


def brings_reward(dataset: Questions) -> bool:
    return _is_of_words(dataset) or is_gym(dataset)


def reward_of(dataset: Questions, model: str | None) -> RewardFunction | None:
    """None for a dataset without one; `model`: the name or path by which sentences of the words task are judged.

    ValueError: that task without one.
    """
    if not _is_of_words(dataset):
        return own_reward(dataset)
    if model is None:
        raise ValueError("the words task needs a model that judges fluency: give WordsReward('NAME_OR_PATH')")
    return WordsReward(model)


def _is_of_words(dataset: Questions) -> bool:
    named = {"task", "forms"} <= set(dataset.column_names)
    return named and all(isinstance(task, str) and is_words(task) for task in dataset["task"])
