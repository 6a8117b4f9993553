"""Ctrl-C and SIGTERM while training: the step in progress is finished first; a second one ends at once."""

import os
import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import TypeVar

from policy_split.isolation.handlers import Handlers, has_children
from policy_split.isolation.time_limit import time_limited
from policy_split.run_folder.random_states import random_states, set_random_states

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE = 10.0  # seconds that rewards may take whose processes the signal may have reached
T = TypeVar("T")


class StopRequest:
    """`with StopRequest() as stop:` turns the first signal into `stop.asked`; the second does what it always did.

    Outside the main thread, where Python lets nobody handle signals, they keep their usual meaning, as they do in every
    process that is forked inside.
    """

    def __init__(self) -> None:
        self.asked = False
        self.handlers = Handlers(dict.fromkeys(SIGNALS, self._ask))
        self.calling = False  # code that is not ours
        self.broken_off = False  # the call, by the signal
        self.reached_children = False  # perhaps: Ctrl-C goes to all processes of the terminal

    def __enter__(self) -> "StopRequest":
        self.handlers.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.handlers.restore()

    def call(self, function: Callable[[], T]) -> T:
        """What code that is not ours returns, such as reward functions.

        If a signal comes meanwhile and there are child processes, which it may have reached as well, no answer can be
        relied on, and one may never come: the call is broken off as Ctrl-C breaks it off elsewhere, by
        KeyboardInterrupt, and made again. TimeoutError: that one has no answer within GRACE seconds.
        """
        if not self.asked:
            states = random_states()
            try:
                try:
                    self.calling = True
                    result = function()
                finally:
                    self.calling = False
            except BaseException:
                if not self.broken_off:
                    raise
            else:
                if not self.broken_off:
                    return result
            set_random_states(states)
        if not self.reached_children:
            return function()
        return time_limited(function, GRACE, "a call that the signal broke off, made again,")()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self.handlers.restore()
        self.reached_children = has_children()
        name = signal.Signals(number).name
        # not print: the signal may have come in the middle of one
        os.write(2, f"\n{name}: finishing the step, then saving; once more to end at once\n".encode())
        if self.calling and self.reached_children:
            self.broken_off = True
            raise KeyboardInterrupt
