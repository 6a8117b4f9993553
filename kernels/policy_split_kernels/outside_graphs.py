"""torch.compiler.disable, without the second that importing it takes where nothing is compiled."""

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from .dtensor import is_dtensor

P = ParamSpec("P")
R = TypeVar("R")


def outside_graphs(function: Callable[P, R]) -> Callable[P, R]:
    """A function that torch.compile calls rather than traces, because it talks to other processes."""
    disabled: list[Callable[P, R]] = []

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if "torch._dynamo" not in sys.modules:
            return function(*args, **kwargs)
        if not disabled:
            disabled.append(torch.compiler.disable(function))
        return disabled[0](*args, **kwargs)

    return call


def outside_graphs_with_others(function: Callable[P, R]) -> Callable[P, R]:
    """The same only where other processes take part: a `process_group` is given, or an argument is a DTensor."""
    outside = outside_graphs(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        alone = kwargs.get("process_group") is None and not any(map(is_dtensor, (*args, *kwargs.values())))
        return function(*args, **kwargs) if alone else outside(*args, **kwargs)

    return call
