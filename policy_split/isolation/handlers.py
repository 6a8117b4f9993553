"""Signal handlers of ours: they act in the process that has set them, and in none that is forked from it."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Mapping
from types import FrameType, TracebackType
from typing import Any

Handler = Callable[[int, FrameType | None], Any]
_active: list["Handlers"] = []  # of this process, the innermost last


class Handlers:
    """`with Handlers({number: handler}):` has them inside, and what was there before afterwards.

    A child that is forked inside begins with what was there before, so that terminate(), Ctrl-C and alarms of its own
    mean to it what they mean outside. Other threads than the main one, where Python lets nobody handle signals, have no
    handlers: nothing is done.
    """

    def __init__(self, handlers: Mapping[int, Handler]):
        self.handlers = handlers
        self.previous: dict[int, Any] = {}
        self.process = os.getpid()

    def __enter__(self) -> "Handlers":
        self.process = os.getpid()
        if threading.current_thread() is threading.main_thread():
            _active.append(self)
            self.previous = {number: signal.getsignal(number) for number in self.handlers}
            for number in self.handlers:
                signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.restore()

    def restore(self) -> None:
        """What was there before is there again; a second time, nothing is done."""
        previous, self.previous = self.previous, {}
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if self in _active:
            _active.remove(self)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self.process:
            self.handlers[number](number, frame)
        else:  # forked by what does not tell Python, or in the moment before Python has told us
            restore_all()
            os.kill(os.getpid(), number)


def restore_all() -> None:
    for handlers in reversed(list(_active)):
        handlers.restore()


def has_children() -> bool:
    """Whether this process has children that nobody has waited for."""
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return True
    return False


_masks = threading.local()


def _before_fork() -> None:
    """A signal that reached the child before `restore_all` would be noted by our handler, and Python forgets the note.

    So it has to wait. The mask is that of the thread that forks, which the child begins with.
    """
    ours = {number for handlers in _active for number in handlers.previous}
    _masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, ours) if ours else None


def _after_fork() -> None:
    if getattr(_masks, "before", None) is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _masks.before)


def _in_child() -> None:
    restore_all()
    _after_fork()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_child)
