"""Reward functions that are coroutines: awaited together, in one event loop that lives as long as the process."""

import asyncio
import functools
import inspect
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, TypeVar

T = TypeVar("T")
GRACE = 1.0  # seconds above a limit, for coroutines that never await and so cannot be told that theirs is over


class _Loop:
    """An event loop in a thread of its own: sessions and locks that a function keeps stay usable from step to step."""

    def __init__(self) -> None:
        self.loop, self.owner = asyncio.new_event_loop(), os.getpid()
        threading.Thread(target=self.loop.run_forever, name="policy-split-rewards", daemon=True).start()


_current: list[_Loop] = []


def await_together(awaitables: Sequence[Awaitable[Any]], limit: float | None = None) -> list[Any]:
    """What each of them returns or raises, whatever that is, awaited at the same time.

    limit: seconds until TimeoutError; None: as long as it takes. Can be called where a loop runs, in a notebook.
    """

    async def gathered() -> list[Any]:
        return await asyncio.gather(*map(_outcome, awaitables))

    future = asyncio.run_coroutine_threadsafe(gathered(), _loop())
    try:
        return future.result(limit)
    except FutureTimeoutError:  # Python 3.10 has two of the name
        _current.clear()  # something holds the loop; the next step has another
        raise TimeoutError from None
    except BaseException:  # Ctrl-C
        future.cancel()
        raise


async def _outcome(awaitable: Awaitable[Any]) -> Any:
    """SystemExit and KeyboardInterrupt as well, which would end the loop and leave nobody to answer."""
    try:
        return await awaitable
    except BaseException as error:
        return error


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it makes a coroutine: a function, a partial of one, an object whose __call__ is one."""
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def time_limited_async(
    function: Callable[..., Coroutine[Any, Any, T]], seconds: float, name: str
) -> Callable[..., Coroutine[Any, Any, T]]:
    """The coroutine function, cancelled with TimeoutError, which names it, where it takes longer."""

    @functools.wraps(function)
    async def limited(*args: Any, **kwargs: Any) -> T:
        try:
            return await asyncio.wait_for(function(*args, **kwargs), seconds)
        except asyncio.TimeoutError:
            raise TimeoutError(f"{name} gave no answer within {seconds:g} seconds") from None

    limited.__name__ = name
    return limited


def _loop() -> asyncio.AbstractEventLoop:
    if not _current or _current[0].owner != os.getpid():  # a fork has the loop without its thread
        _current[:] = [_Loop()]
    return _current[0].loop
