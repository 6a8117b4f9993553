"""Code of users is called through here, so that whoever runs it decides what a signal means to it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")
_caller: ContextVar[Callable[[Callable[[], Any]], Any] | None] = ContextVar("policy_split_caller", default=None)


@contextmanager
def foreign_calls_by(caller: Callable[[Callable[[], Any]], Any]) -> Iterator[None]:
    """Let the caller make the calls of `call_foreign` inside."""
    token = _caller.set(caller)
    try:
        yield
    finally:
        _caller.reset(token)


def call_foreign(function: Callable[[], T]) -> T:
    caller = _caller.get()
    result: T = function() if caller is None else caller(function)
    return result
