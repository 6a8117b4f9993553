"""A time limit on calls of a function that is not ours and may hang."""

import functools
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import ParamSpec, TypeVar

from .handlers import Handlers

P = ParamSpec("P")
R = TypeVar("R")


class _Late(BaseException):
    """Raised inside the call; no Exception, so that an `except Exception` in the function does not swallow it."""


def check_time_limit(name: str) -> None:
    """Raises RuntimeError where `time_limited` could not break off a call."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        raise RuntimeError(f"{name} needs the main thread of a Unix process")


def time_limited(function: Callable[P, R], seconds: float, name: str) -> Callable[P, R]:
    """The function with a limit: a call that takes longer is broken off with TimeoutError, which names it.

    By an alarm signal, which also ends a regular expression that backtracks for ever; a thread could not, and a child
    process would ask for what can be pickled. Not ended: C code that never looks for signals. A function that sets
    alarms of its own has its own limit, and so has a process that it forks. Calls need the main thread of a Unix
    process: RuntimeError elsewhere.
    """

    @functools.wraps(function)
    def limited(*args: P.args, **kwargs: P.kwargs) -> R:
        check_time_limit(f"the time limit of {name}")
        running = True

        def late(number: int, frame: FrameType | None) -> None:
            if running:
                raise _Late

        started = time.monotonic()
        handlers = Handlers({signal.SIGALRM: late}).__enter__()
        # again and again: a bare `except:` may swallow the first
        remaining, interval = signal.setitimer(signal.ITIMER_REAL, seconds, max(seconds / 10, 0.01))
        try:
            return function(*args, **kwargs)
        except _Late:
            raise TimeoutError(f"{name} gave no answer within {seconds:g} seconds") from None
        finally:
            running = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            handlers.restore()
            if remaining:  # an alarm that somebody else had set
                left = max(remaining - (time.monotonic() - started), 1e-6)
                signal.setitimer(signal.ITIMER_REAL, left, interval)

    limited.__name__ = name
    return limited


def add_note(error: BaseException, note: str) -> None:
    """Python 3.11's add_note, also for 3.10, which does not print notes in tracebacks."""
    error.__notes__ = [*getattr(error, "__notes__", ()), note]
