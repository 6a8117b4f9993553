"""Reward functions as for TRL: `reward(prompts, completions, completion_ids, **columns) -> list[float | None]`."""

import importlib
import importlib.util
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from policy_split.data.reasoning_gym import PREFIX, ReasoningGymReward
from policy_split.isolation.time_limit import add_note, time_limited

REWARD_HELP = "module:function, file.py:function or reasoning-gym:TASK; may be repeated."
RewardFunction = Callable[..., Sequence[float | None]]


def load_reward(spec: str) -> RewardFunction:
    """The function of "package.module:function", "path/to/file.py:function" or "reasoning-gym:task".

    Raises ValueError for another form or a module without it, FileNotFoundError and ModuleNotFoundError for what is not
    there, TypeError if it cannot be called. What the module itself raises on import is passed on.
    """
    if spec.startswith(PREFIX):
        return ReasoningGymReward(spec)
    source, _, name = spec.rpartition(":")
    if not source or not name:
        raise ValueError(f"reward {spec!r} must be 'package.module:function' or 'path/to/file.py:function'")
    module = _load_file(Path(source), spec) if source.endswith(".py") else _load_module(source, spec)
    function: RewardFunction | None = getattr(module, name, None)
    if function is None:
        there = ", ".join(key for key, value in vars(module).items() if inspect.isfunction(value)) or "none"
        raise ValueError(f"reward {spec!r}: {source} has no {name!r}; its functions are {there}")
    if not callable(function):
        raise TypeError(f"reward {spec!r}: {name} is a {type(function).__name__}, not a function")
    return function


def as_reward_functions(
    reward_funcs: Any, weights: Sequence[float] | None, timeout: float | None = None
) -> list[tuple[RewardFunction, float]]:
    """(function, weight) pairs from one function or several, each callable or a text that `load_reward` takes.

    timeout: seconds that a call of a function may take, see `time_limited`; None: no limit.
    """
    given = [reward_funcs] if callable(reward_funcs) or isinstance(reward_funcs, str) else list(reward_funcs)
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
        functions = [time_limited(function, timeout, reward_name(function)) for function in functions]
    return list(zip(functions, weights, strict=True))


def check_columns(functions: Sequence[tuple[RewardFunction, float]], columns: Iterable[str]) -> None:
    """Raises ValueError if a reward function asks for a column that the dataset does not have."""
    available = {"prompts", "completions", "completion_ids", *columns} - {"prompt"}
    for function, _ in functions:
        missing = [
            parameter.name
            for parameter in _parameters(function)
            if parameter.default is parameter.empty
            and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            and parameter.name not in available
        ]
        if missing:
            raise ValueError(
                f"reward function {reward_name(function)} needs {', '.join(missing)}; it can have "
                f"{', '.join(sorted(available))} (the dataset's columns and what was sampled)"
            )


def compute_rewards(
    functions: Sequence[tuple[RewardFunction, float]],
    prompts: Sequence[Any],  # (R,) text or messages
    texts: Sequence[str],  # (R,) responses, decoded without special tokens
    completion_ids: Sequence[Sequence[int]],  # (R,)
    columns: Mapping[str, Sequence[Any]],  # (R,) each
) -> list[float]:
    """Weighted sum of every function's rewards, one per response (R,).

    Functions get the columns that their parameters name, all of them with **kwargs. Completions are texts for text
    prompts and [{"role": "assistant", "content": text}] for chat prompts, as in TRL. A function's None leaves it out of
    that sample's sum. Raises ValueError, naming function and sample, for a wrong number of rewards, NaN or infinity,
    and for a sample that every function leaves out; TypeError for what is no number. What a function raises itself is
    passed on with a note that names function and sample; to find it, the function is called for each sample alone.
    """
    chats = [not isinstance(prompt, str) for prompt in prompts]
    completions = [
        [{"role": "assistant", "content": text}] if chat else text for chat, text in zip(chats, texts, strict=True)
    ]
    given = {**columns, "prompts": list(prompts), "completions": completions, "completion_ids": list(completion_ids)}
    totals, graded = [0.0] * len(texts), [False] * len(texts)
    for function, weight in functions:
        for sample, reward in enumerate(_call(function, given, texts)):
            if reward is not None:
                totals[sample] += weight * reward
                graded[sample] = True
    if not all(graded):
        names = ", ".join(reward_name(function) for function, _ in functions)
        sample = graded.index(False)
        raise ValueError(f"sample {sample} ({texts[sample]!r}) has no reward: {names} returned None for it")
    return totals


def reward_name(function: RewardFunction) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _call(function: RewardFunction, given: Mapping[str, Any], texts: Sequence[str]) -> list[float | None]:
    parameters, name = _parameters(function), reward_name(function)
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    names = {parameter.name for parameter in parameters}
    arguments = {key: value for key, value in given.items() if takes_all or key in names}
    try:
        rewards = function(**arguments)
    except Exception as error:
        add_note(error, f"reward function {name}, {_failing_sample(function, arguments, texts)}")
        raise
    rewards = rewards.tolist() if hasattr(rewards, "tolist") else rewards  # arrays and tensors
    if isinstance(rewards, (str, Mapping)) or not isinstance(rewards, Iterable):
        raise TypeError(
            f"reward function {name} returned {type(rewards).__name__}; expected a list of {len(texts)} numbers"
        )
    rewards = list(rewards)
    if len(rewards) != len(texts):
        raise ValueError(f"reward function {name} returned {len(rewards)} rewards for {len(texts)} completions")
    return [
        _checked(reward, name, sample, text) for sample, (reward, text) in enumerate(zip(rewards, texts, strict=True))
    ]


def _failing_sample(function: RewardFunction, arguments: Mapping[str, Any], texts: Sequence[str]) -> str:
    """Which sample makes the function fail, for a message: the first for which it fails alone."""
    for sample, text in enumerate(texts):
        try:
            function(**{key: values[sample : sample + 1] for key, values in arguments.items()})
        except Exception:
            return f"sample {sample} ({text!r})"
    return f"{len(texts)} samples at once; it does not fail for any of them alone"


def _checked(reward: Any, name: str, sample: int, text: str) -> float | None:
    if reward is None:
        return None
    reward = reward.item() if hasattr(reward, "item") and getattr(reward, "size", None) != 0 else reward
    if not isinstance(reward, Real):
        raise TypeError(
            f"reward function {name}, sample {sample} ({text!r}): returned {reward!r}, a {type(reward).__name__}; "
            f"expected a number or None"
        )
    if not math.isfinite(reward):
        raise ValueError(
            f"reward function {name}, sample {sample} ({text!r}): returned {reward}; expected a finite number"
        )
    return float(reward)


def _parameters(function: RewardFunction) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except ValueError:  # some builtins have no signature
        return [inspect.Parameter("columns", inspect.Parameter.VAR_KEYWORD)]


def _load_file(path: Path, spec: str) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"reward {spec!r}: there is no file {path}")
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    if module_spec is None or module_spec.loader is None:
        raise ImportError(f"reward {spec!r}: {path} cannot be imported")
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module


def _load_module(name: str, spec: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise ModuleNotFoundError(f"reward {spec!r}: there is no module {error.name!r}", name=error.name) from error
        raise
