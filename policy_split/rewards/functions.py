"""Reward functions as for TRL: `reward(prompts, completions, completion_ids, **columns) -> list[float | None]`."""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from policy_split.isolation.time_limit import time_limited

from .awaiting import is_async, time_limited_async
from .calls import call_rewards, parameters, reward_name
from .context import NAMES, RewardContext
from .loading import RewardFunction, load_reward
from .values import LARGEST


def as_reward_functions(
    reward_funcs: Any, weights: Sequence[float] | None, timeout: float | None = None
) -> list[tuple[RewardFunction, float]]:
    """(function, weight) pairs from one function or several, each callable or a text that `load_reward` takes.

    timeout: seconds that a call of a function may take, see `time_limited`; None: no limit.
    """
    if callable(reward_funcs) or isinstance(reward_funcs, str):
        reward_funcs = [reward_funcs]
    if not isinstance(reward_funcs, Iterable) or isinstance(reward_funcs, Mapping):
        raise TypeError(f"reward_funcs is {reward_funcs!r}, a {type(reward_funcs).__name__}; expected functions")
    given = list(reward_funcs)
    functions = [load_reward(function) if isinstance(function, str) else function for function in given]
    if not functions:
        raise ValueError("reward_funcs is empty; at least one reward function is needed")
    for function in functions:
        if not callable(function):
            raise TypeError(f"reward_funcs holds {function!r}, a {type(function).__name__}; expected functions")
    weights = [1.0] * len(functions) if weights is None else list(weights)
    if len(weights) != len(functions):
        raise ValueError(
            f"reward_weights={weights} must have one weight for each of the {len(functions)} reward functions"
        )
    if timeout is not None:
        functions = [_limited(function, timeout) for function in functions]
    return list(zip(functions, weights, strict=True))


def _limited(function: RewardFunction, seconds: float) -> RewardFunction:
    limit = time_limited_async if is_async(function) else time_limited
    limited: RewardFunction = limit(function, seconds, reward_name(function))
    vars(limited)["limit"] = seconds
    return limited


def check_columns(functions: Sequence[tuple[RewardFunction, float]], columns: Iterable[str]) -> None:
    """Raises ValueError if a reward function asks for a column that the dataset does not have."""
    sampled = {"prompts", "completions", "completion_ids", *columns} - {"prompt"}
    for function, _ in functions:
        missing = [
            parameter.name
            for parameter in parameters(function)
            if parameter.default is parameter.empty
            and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            and parameter.name not in {*sampled, *NAMES}
        ]
        if missing:
            raise ValueError(
                f"reward function {reward_name(function)} needs {', '.join(missing)}; it can have "
                f"{', '.join(sorted(sampled))} (the dataset's columns and what was sampled), {', '.join(NAMES)}"
            )


def compute_rewards(
    functions: Sequence[tuple[RewardFunction, float]],
    prompts: Sequence[Any],  # (R,) text or messages
    texts: Sequence[str],  # (R,) responses, decoded
    completion_ids: Sequence[Sequence[int]],  # (R,)
    columns: Mapping[str, Sequence[Any]],  # (R,) each
    context: RewardContext | None = None,
) -> list[float]:
    """Weighted sum of every function's rewards, one per response (R,); NaN for one that every function leaves out.

    Functions get the columns that their parameters name, all of them with **kwargs, and what they name of
    trainer_state, log_extra and log_metric (`RewardContext`). Completions are texts for text prompts and
    [{"role": "assistant", "content": text}] for chat prompts, as in TRL; coroutines are awaited, those of all functions
    at the same time. A function's None leaves it out of that sample's sum. Raises ValueError, naming function and
    sample, for a wrong number of rewards, NaN or infinity; TypeError for what is no number. What a function raises
    itself is passed on with a note that names function and sample; to find it, the function is called for each sample
    alone.
    """
    chats = [not isinstance(prompt, str) for prompt in prompts]
    completions = [
        [{"role": "assistant", "content": text}] if chat else text for chat, text in zip(chats, texts, strict=True)
    ]
    given = {**columns, "prompts": list(prompts), "completions": completions, "completion_ids": list(completion_ids)}
    context = RewardContext() if context is None else context
    graded = call_rewards([function for function, _ in functions], given, context, texts)
    _check_extra_columns(context, len(texts))
    totals = []
    for sample, of_sample in enumerate(zip(*graded, strict=True)):
        parts = [w * r for (_, w), r in zip(functions, of_sample, strict=True) if r is not None]
        totals.append(sum(parts) if parts else math.nan)
        if parts and not abs(totals[-1]) <= LARGEST:
            raise ValueError(f"sample {sample} ({texts[sample]!r}): the weighted sum of its rewards is {totals[-1]}")
    if totals and all(map(math.isnan, totals)):
        names = ", ".join(reward_name(function) for function, _ in functions)
        warnings.warn(f"none of {len(texts)} responses has a reward: {names} returned None for each", stacklevel=2)
    return totals


def _check_extra_columns(context: RewardContext, count: int) -> None:
    for name, values in context.columns.items():
        if len(values) != count:
            raise ValueError(f"log_extra({name!r}, ...) was given {len(values)} values for {count} completions")
