"""The other side of `isolated`: a server that never runs the function itself, and a fork of it for each batch.

It is run as a file, away from the package, and imports the standard library alone: no torch, no model, no GPU. Requests
come by standard input, a JSON line each: first what to set up, then batches of items. Replies go to standard output:
[place, value, fault] for each item in its order. A batch that goes wrong harms a fork, not the server.
"""

import contextlib
import importlib
import json
import math
import os
import resource
import runpy
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

LONGEST = 1 << 24  # bytes of a result; more is a process that has gone mad
Result = tuple[Any, str | None]  # value, and what went wrong


class Lines:
    """Lines of a pipe, waited for no longer than asked."""

    def __init__(self, descriptor: int, longest: float = math.inf):
        self.descriptor, self.longest, self.rest = descriptor, longest, b""

    def read(self, seconds: float | None = None, watched: int | None = None) -> bytes:
        """The next line. TimeoutError: not within the seconds; EOFError: the pipe has ended, or the watched one has."""
        limit = None if seconds is None else time.monotonic() + seconds
        waiting = select.poll()  # select.select takes no descriptor above 1023
        for descriptor in (self.descriptor, *(() if watched is None else (watched,))):
            waiting.register(descriptor, select.POLLIN)
        while b"\n" not in self.rest:
            left = None if limit is None else max(0.0, limit - time.monotonic()) * 1000
            ready = [descriptor for descriptor, _ in waiting.poll(left)]
            if watched in ready:
                raise ParentGone
            if not ready:
                raise TimeoutError
            part = os.read(self.descriptor, 1 << 16)
            if not part or len(self.rest) > self.longest:
                raise EOFError
            self.rest += part
        line, _, self.rest = self.rest.partition(b"\n")
        return line


class ParentGone(Exception):
    """Nobody waits for the results."""


def write_line(descriptor: int, text: str) -> None:
    line = (text + "\n").encode()
    while line:
        line = line[os.write(descriptor, line) :]


def main() -> None:
    replies, null = os.dup(1), os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)  # what imports print is no reply
    requests = Lines(0)
    with contextlib.suppress(EOFError, BrokenPipeError, ParentGone):
        setup = json.loads(requests.read())
        sys.path[:] = setup["path"]
        try:
            function = find(setup["factory"])(*setup["arguments"])
        except Exception as error:
            named = isinstance(error, ValueError)
            write_line(replies, json.dumps({"error": str(error) if named else f"{type(error).__name__}: {error}"}))
            return
        write_line(replies, json.dumps({"ready": os.getpid()}))
        while True:
            items, place = json.loads(requests.read()), 0
            while place < len(items):
                for result in attempt(function, items, place, setup, replies):
                    write_line(replies, json.dumps([place, *result]))
                    place += 1


def find(factory: str) -> Callable[..., Any]:
    source, _, name = factory.rpartition(":")
    function: Callable[..., Any]
    if source.endswith(".py"):
        function = runpy.run_path(source)[name]
    else:
        function = getattr(importlib.import_module(source), name)
    return function


def attempt(
    function: Callable[[Any], Any], items: list[Any], first: int, limits: dict[str, Any], replies: int
) -> Iterator[Result]:
    """Results of the items from `first` on, in a fork; they end with the first fault, or just before it.

    A fault other than a hang counts only if its item was alone with a fresh fork: what an earlier item left behind may
    be its cause, such as memory that was not given back.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(replies)
            os.close(reading)
            confine(limits["memory"])
            work(function, items, first, limits["seconds"], writing)
        finally:
            os._exit(0)
    os.close(writing)
    lines = Lines(reading, LONGEST)
    try:
        for place in range(first, len(items)):
            try:
                value, fault = read_result(lines.read(limits["seconds"], watched=0), place)
            except TimeoutError:
                yield None, f"gave no answer within {limits['seconds']:g} seconds"
                return
            except EOFError:
                value, fault = None, f"ended its process ({end(child)})"
                child = 0
            if fault is None:
                yield value, None
                continue
            if place == first:
                yield None, fault
            return
    finally:
        os.close(reading)
        if child:
            end(child)


def confine(memory: int) -> None:
    """Limits of a fork: address space beyond what it has, no files to write, nobody to talk to."""
    os.setpgid(0, 0)  # so that what the function starts can be ended with it
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    with open("/proc/self/statm", encoding="ascii") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + memory, size + memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def work(function: Callable[[Any], Any], items: list[Any], first: int, seconds: float, writing: int) -> None:
    for place in range(first, len(items)):
        # by the kernel, should the server have been ended by what runs here
        limit = math.ceil(time.process_time() + seconds + 1)
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        try:
            value = function(items[place])
            value = value.item() if hasattr(value, "item") else value  # numpy's numbers
            line = json.dumps([place, value, None])
        except BaseException as error:
            line = json.dumps([place, None, f"raised {type(error).__name__}: {str(error)[:200]}"])
        write_line(writing, line)


def read_result(line: bytes, place: int) -> Result:
    """The line's value and fault; it may be anything, since the function can write to the pipe too."""
    try:
        number, value, fault = json.loads(line)
    except (ValueError, TypeError, RecursionError):
        number, value, fault = None, None, None
    if number != place or not (fault is None or isinstance(fault, str)):
        return None, "wrote something else than a result"
    return value, fault


def end(child: int) -> str:
    """End the fork and what it has started; how the fork itself came to its end."""
    for kill in (os.killpg, os.kill):  # the group is not there before the fork has come to make it
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return f"exit status {os.WEXITSTATUS(status)}"


if __name__ == "__main__":
    main()
