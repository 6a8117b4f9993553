"""Handlers of ours act in the process that has set them: real children, ended for real."""

import os
import signal
import threading
import time

import pytest

from policy_split.isolation import handlers
from policy_split.isolation.foreign_calls import call_foreign, foreign_calls_by
from policy_split.isolation.handlers import Handlers, has_children
from policy_split.isolation.time_limit import time_limited


def ended_by(child, number, seconds=5):
    """The signal by which the child ended, or its exit status as a negative number; None: it goes on."""
    os.kill(child, number)
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def sleeping_child():
    child = os.fork()
    if child:
        return child
    try:
        time.sleep(30)
    except KeyboardInterrupt:
        os._exit(7)
    finally:
        os._exit(8)


@pytest.fixture
def noted():
    seen = []
    with Handlers({signal.SIGTERM: lambda number, frame: seen.append(number)}):
        yield seen


def test_a_signal_is_handled_here_and_what_was_there_comes_back():
    before, seen = signal.getsignal(signal.SIGTERM), []
    with Handlers({signal.SIGTERM: lambda number, frame: seen.append((number, os.getpid()))}) as ours:
        os.kill(os.getpid(), signal.SIGTERM)
        assert seen == [(signal.SIGTERM, os.getpid())]
        ours.restore()
        assert signal.getsignal(signal.SIGTERM) is before
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_child_is_ended_however_early_the_signal_comes(noted):
    """Two hundred times: between a fork and the child's first line of Python the signal would be forgotten."""
    assert {ended_by(sleeping_child(), signal.SIGTERM) for _ in range(200)} == {signal.SIGTERM}
    assert noted == []
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


def test_a_child_of_a_fork_that_python_does_not_see(noted, monkeypatch):
    monkeypatch.setattr(handlers, "_active", [])  # as if no hook had run: what it would restore is not known to it
    monkeypatch.setattr(handlers, "restore_all", lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    child = sleeping_child()
    time.sleep(0.1)  # no hook makes an early signal wait
    assert ended_by(child, signal.SIGTERM) == signal.SIGTERM
    assert noted == []


def test_a_child_sees_its_parents_own_handlers(noted):
    with Handlers({signal.SIGINT: lambda number, frame: pytest.fail("in the parent")}):
        child = sleeping_child()
        time.sleep(0.05)
        assert ended_by(child, signal.SIGINT) == -7  # KeyboardInterrupt


def test_a_grandchild_and_handlers_that_a_child_sets_itself(noted):
    child = os.fork()
    if not child:
        own = []
        with Handlers({signal.SIGTERM: lambda number, frame: own.append(number)}):
            os.kill(os.getpid(), signal.SIGTERM)
            grandchild = ended_by(sleeping_child(), signal.SIGTERM)
        os._exit(10 * len(own) + (grandchild == signal.SIGTERM))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 11


def test_a_fork_from_another_thread(noted):
    said = []
    thread = threading.Thread(target=lambda: said.append(ended_by(sleeping_child(), signal.SIGTERM)))
    thread.start()
    thread.join(20)
    assert said == [signal.SIGTERM]


def test_outside_the_main_thread_nothing_is_set():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def look():
        with Handlers({signal.SIGTERM: lambda number, frame: None}):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join(20)
    assert seen == [before]


def test_an_alarm_of_a_forked_child_is_its_own():
    def with_an_alarm():
        child = os.fork()
        if not child:
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            time.sleep(5)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    previous = signal.signal(signal.SIGALRM, signal.SIG_DFL)  # of what limits the tests' time
    try:
        assert time_limited(with_an_alarm, 10, "it")() == -signal.SIGALRM
    finally:
        signal.signal(signal.SIGALRM, previous)


def test_whether_there_are_children():
    assert not has_children()
    child = sleeping_child()
    assert has_children()
    assert ended_by(child, signal.SIGKILL) == signal.SIGKILL
    assert not has_children()


def test_foreign_calls_go_through_their_caller():
    assert call_foreign(lambda: 1) == 1
    with foreign_calls_by(lambda function: [function(), "called"]):
        assert call_foreign(lambda: 1) == [1, "called"]
    assert call_foreign(lambda: 1) == 1
