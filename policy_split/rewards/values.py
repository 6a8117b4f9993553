"""What a reward function returned, as one number or None for each sample."""

import math
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from numbers import Real
from typing import Any

LARGEST = 3.4028234663852886e38  # of float32, in which advantages are computed


def checked_rewards(rewards: Any, name: str, texts: Sequence[str]) -> list[float | None]:
    """A number or None for each text; TypeError or ValueError names function, sample and value for anything else.

    Arrays, tensors and series count as lists, and an element of one dimension or none as a number.
    """
    try:
        given = rewards.tolist() if hasattr(rewards, "tolist") else rewards
    except Exception as error:  # a tensor without data, ...
        raise TypeError(
            f"reward function {name} returned {_shown(rewards)}, a {type(rewards).__name__} that cannot be read "
            f"({type(error).__name__}: {error})"
        ) from error
    if isinstance(given, (str, bytes, Mapping, set, frozenset)) or not isinstance(given, Iterable):
        raise TypeError(
            f"reward function {name} returned {_shown(rewards)}, a {type(rewards).__name__}; "
            f"expected a list of {len(texts)} numbers"
        )
    values = list(given)
    if len(values) != len(texts):
        raise ValueError(f"reward function {name} returned {len(values)} rewards for {len(texts)} completions")
    return [_checked(value, f"reward function {name}, sample {n} ({texts[n]!r})") for n, value in enumerate(values)]


def _checked(value: Any, where: str) -> float | None:
    if value is None:
        return None
    number = value
    if hasattr(value, "item"):
        try:
            number = value.item()
        except (ValueError, RuntimeError):  # of more than one element, or none
            shape = tuple(getattr(value, "shape", ()))
            raise TypeError(
                f"{where}: returned {_shown(value)}, a {type(value).__name__} of shape {shape}; expected one number "
                f"or None"
            ) from None
    if number is None:
        return None
    if not isinstance(number, (Real, Decimal)):
        raise TypeError(f"{where}: returned {_shown(value)}, a {type(value).__name__}; expected a number or None")
    try:
        reward = float(number)
    except OverflowError:
        reward = math.inf
    if not abs(reward) <= LARGEST:
        raise ValueError(f"{where}: returned {_shown(value)}; expected a finite number that float32 can hold")
    return reward


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:100]}..."
