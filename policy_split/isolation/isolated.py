"""A function that may hang, eat memory or end its process, such as a grader of models' answers, in a process apart."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .server import Lines, read_result, write_line

SERVER = Path(__file__).with_name("server.py")

_servers: weakref.WeakSet["Isolated"] = weakref.WeakSet()  # that this process has started
GRACE = 30.0  # seconds that a server may take above the function's own, on a machine that is busy
# one thread, no GPU, and the order of sets the same in every run
ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
ENVIRONMENT |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONHASHSEED": "0"}


class Result(NamedTuple):
    value: Any  # of JSON's types, whatever the function has made of them
    fault: str | None = None  # what went wrong, in words; the value is then None


class Isolated:
    """`factory(*arguments)` called for items in a child process: `Isolated("grade.py:make", ["x"]).results(items)`.

    factory: "package.module:name" or "path/to/file.py:name", imported by the child with this process's sys.path;
    arguments and items: what JSON can hold. Each item has `seconds` of time and the process `memory` bytes of address
    space beyond what it began with; it can write no file, and it is not this process's fork. What it sends is read as
    JSON. Batches begin in a process that no item has touched; items of one batch are not guarded from each other, nor
    is the machine: it may read files and talk to the network. The child ends with this object or this process, however
    that ends. Linux only. Raises ValueError if the factory cannot be found or fails.
    """

    def __init__(self, factory: str, arguments: Sequence[Any] = (), *, seconds: float = 5.0, memory: int = 1 << 30):
        self.seconds = seconds
        self.setup = {"factory": factory, "arguments": list(arguments), "seconds": seconds, "memory": memory}
        self._start()

    def results(self, items: Sequence[Any]) -> Generator[Result]:
        """The Result of each item, in order, as they come; one whose call fails has a fault, the next ones go on."""
        place, alone = 0, False
        while place < len(items):
            batch = list(items[place : place + 1] if alone else items[place:])
            try:
                with contextlib.closing(self._batch(batch)) as results:
                    for result in results:
                        place += 1
                        yield result
            except _ServerGone:
                if len(batch) == 1:
                    place += 1
                    yield Result(None, "ended or stopped the server of its process")
                alone = len(batch) > 1  # whose doing it was is known of an item that was alone with it

    def close(self) -> None:
        """End the child; a later call starts another."""
        self._finalizer()

    def _start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, SERVER],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
            env=os.environ | ENVIRONMENT, start_new_session=True,
        )  # fmt: skip
        assert self.process.stdin and self.process.stdout  # pipes
        self._finalizer = weakref.finalize(self, _end, self.process, os.getpid())
        self.owner, self.requests, self.lines = os.getpid(), self.process.stdin, Lines(self.process.stdout.fileno())
        _servers.add(self)
        with contextlib.suppress(BrokenPipeError):
            write_line(self.requests.fileno(), json.dumps(self.setup | {"path": sys.path}))
        try:
            said = json.loads(self.lines.read())
        except (EOFError, ValueError):
            said = {"error": f"the child process ended with {self.process.wait()}"}
        if "error" in said:
            self.close()
            raise ValueError(said["error"])

    def _started(self) -> None:
        """Start another child if this one is gone, or belongs to the process that this one was forked from."""
        if self.owner != os.getpid() or not self._finalizer.alive or self.process.poll() is not None:
            self._finalizer()
            self._start()

    def _batch(self, items: list[Any]) -> Generator[Result]:
        self._started()
        done = 0
        try:
            with contextlib.suppress(BrokenPipeError):  # seen when a reply is read
                write_line(self.requests.fileno(), json.dumps(items))
            while done < len(items):
                line = self.lines.read(2 * self.seconds + GRACE)
                value, fault = read_result(line, done)
                done += 1
                yield Result(value, fault)
        except (EOFError, TimeoutError):
            raise _ServerGone from None
        finally:
            if done < len(items):  # the server has gone, or is left in the middle by an error, a time limit or Ctrl-C
                self.close()


class _ServerGone(Exception):
    """What the function did has ended the server, or stopped it."""


def _hang_up() -> None:
    """In a process just forked: a server ends when nobody holds its pipes any more, and this one would hold them."""
    for isolated in _servers:
        _close_pipes(isolated.process)
    _servers.clear()


os.register_at_fork(after_in_child=_hang_up)


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    """The server ends when its standard input does; where it was ended in another way, its session is left to end."""
    if os.getpid() != owner:
        return
    _close_pipes(process)
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pid in _session(process.pid):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _session(leader: int) -> list[int]:
    """The processes of a session."""
    members = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()  # the name may hold anything
            if int(fields[3]) == leader:
                members.append(int(folder.name))
    return members
