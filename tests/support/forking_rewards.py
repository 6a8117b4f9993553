"""Rewards that start processes in every way that people use, each of a child's own end: they say what became of it.

The standard library alone is imported here, as children that are spawned import it too.
"""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time


def grade(text):
    return text.count("a") / 6


def pool(texts, method):
    with multiprocessing.get_context(method).Pool(2) as workers:  # terminated at the end
        return workers.map(grade, texts)


def executor(texts, method):
    context = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as workers:
        return list(workers.map(grade, texts))


def ended_child(texts, end):
    """The exit code of a child that is ended the usual way."""
    child = multiprocessing.get_context("fork").Process(target=sleep, daemon=True)
    child.start()
    time.sleep(0.05)
    end(child)
    child.join(5)
    code = child.exitcode
    child.kill()
    return [code] * len(texts)


def sleep():
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (the traceback of KeyboardInterrupt)
    time.sleep(30)


def interrupt(child):
    os.kill(child.pid, signal.SIGINT)


def forked(texts, number):
    """The signal that ends a child of os.fork, or -1 where it has seen KeyboardInterrupt."""
    child = os.fork()
    if not child:
        try:
            time.sleep(30)
        except KeyboardInterrupt:
            os._exit(7)
        finally:
            os._exit(8)
    time.sleep(0.05)
    os.kill(child, number)
    status = os.waitpid(child, 0)[1]
    return [os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)] * len(texts)


def alarmed(texts):
    """A child with an alarm for which it has no handler: it is ended by it."""
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            time.sleep(5)
        os._exit(9)
    status = os.waitpid(child, 0)[1]
    return [os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)] * len(texts)


def program(texts):
    """A program with a time limit, as generated code is run."""
    child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(30)"])
    try:
        child.wait(0.1)
    except subprocess.TimeoutExpired:
        child.terminate()
    return [child.wait(5)] * len(texts)


def from_a_thread(texts):
    said = []
    thread = threading.Thread(target=lambda: said.extend(pool(texts, "fork")))
    thread.start()
    thread.join(20)
    return said


WAYS = {
    "pool, fork": lambda texts: pool(texts, "fork"),
    "pool, spawn": lambda texts: pool(texts, "spawn"),
    "pool, forkserver": lambda texts: pool(texts, "forkserver"),
    "pool, from a thread": from_a_thread,
    "executor, fork": lambda texts: executor(texts, "fork"),
    "executor, forkserver": lambda texts: executor(texts, "forkserver"),
    "terminate": lambda texts: ended_child(texts, lambda child: child.terminate()),
    "interrupt": lambda texts: ended_child(texts, interrupt),
    "os.fork, SIGTERM": lambda texts: forked(texts, signal.SIGTERM),
    "os.fork, SIGINT": lambda texts: forked(texts, signal.SIGINT),
    "alarm": alarmed,
    "program": program,
}
