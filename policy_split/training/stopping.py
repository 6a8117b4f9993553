"""Ctrl-C and SIGTERM while training: the step in progress is finished first; a second one ends at once."""

import os
import signal
import threading
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """`with StopRequest() as stop:` turns the first signal into `stop.asked`; the second does what it always did.

    Outside the main thread, where Python lets nobody handle signals, they keep their usual meaning.
    """

    def __init__(self) -> None:
        self.asked = False
        self.previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self.previous = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._restore()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._restore()
        name = signal.Signals(number).name
        # not print: the signal may have come in the middle of one
        os.write(2, f"\n{name}: finishing the step, then saving; once more to end at once\n".encode())

    def _restore(self) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self.previous = {}
