"""Functions in a process of their own: whatever they do, every other item has its result and nothing is left behind."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from policy_split.isolation import isolated
from policy_split.isolation.isolated import Isolated, Result
from policy_split.isolation.server import Lines

HOSTILE = Path(__file__).parents[1] / "support" / "hostile.py"


@pytest.fixture(scope="module")
def worker():
    made = Isolated(f"{HOSTILE}:make", seconds=1.0, memory=128 << 20)
    yield made
    made.close()


def results(worker, *items):
    return list(worker.results(items))


def alive(pid):
    """Whether the process runs: one that nobody has waited for yet has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def soon(condition, seconds=10):
    limit = time.monotonic() + seconds
    while not condition() and time.monotonic() < limit:
        time.sleep(0.02)
    return condition()


def test_results_are_in_the_items_order(worker):
    assert results(worker, "a", "bbb", "", "cc") == [Result(1.0), Result(3.0), Result(0.0), Result(2.0)]
    assert results(worker) == []


@pytest.mark.parametrize(
    ("item", "fault"),
    [
        ("spin", "gave no answer within 1 seconds"),
        ("swallow", "gave no answer within 1 seconds"),
        ("allocate", "raised MemoryError: "),
        ("exit", "ended its process (exit status 0)"),
        ("sys.exit", "raised SystemExit: 1"),
        ("kill self", "ended its process (SIGKILL)"),
        ("kill server", "ended or stopped the server of its process"),
        ("write everywhere", "wrote something else than a result"),
        ("write a file", "raised OSError: [Errno 27] File too large"),
        ("recurse", "raised RecursionError: maximum recursion depth exceeded"),
        ("raise", "raised ZeroDivisionError: division by zero"),
        ("interrupt", "raised KeyboardInterrupt: mine"),
        ("object", "raised TypeError: Object of type object is not JSON serializable"),
    ],
)
def test_a_fault_is_one_items_own(worker, tmp_path, monkeypatch, item, fault):
    monkeypatch.chdir(tmp_path)
    before, bad, after, last = results(worker, "a", item, "bbb", "cc")
    assert (before, after, last) == (Result(1.0), Result(3.0), Result(2.0))
    assert bad == Result(None, fault)
    assert not list(tmp_path.glob("*[a-z]"))


def test_faults_in_a_row_and_at_both_ends(worker):
    given = results(worker, "spin", "raise", "a", "exit", "kill self")
    assert [result.value for result in given] == [None, None, 1.0, None, None]
    assert [bool(result.fault) for result in given] == [True, True, False, True, True]


def test_values_are_what_json_makes_of_them(worker):
    nan, text = results(worker, "nan", "text")
    assert math.isnan(nan.value)
    assert text == Result("1.0")


def test_memory_that_was_not_given_back_is_not_the_next_items_fault(worker):
    kept, needed = results(worker, "keep memory", "need memory")
    assert (kept, needed) == (Result(1.0), Result(1.0))


def test_a_batch_begins_in_a_process_that_no_item_has_touched(worker):
    spoiled = results(worker, "spoil", "bbb")
    assert spoiled[0] == Result(1.0)
    assert spoiled[1] != Result(3.0)  # within a batch there is no guard
    assert results(worker, "bbb") == [Result(3.0)]


def test_no_gpu_and_no_torch(worker):
    assert results(worker, "environment")[0].value == ["", False]


def test_what_an_item_started_is_ended_with_its_batch(worker):
    assert results(worker, "leave a process", "a") == [Result(1.0), Result(1.0)]
    assert soon(lambda: isolated._session(worker.process.pid) == [worker.process.pid])


def test_a_batch_that_is_left_in_the_middle_leaves_nothing(worker):
    for _ in range(2):
        begun = worker.results(["process", "swallow", "a"])
        pid = next(begun).value
        begun.close()
        assert soon(lambda pid=pid: not alive(pid))
        assert results(worker, "a") == [Result(1.0)]


def test_a_server_that_was_ended_between_batches_is_started_again(worker):
    results(worker, "a")
    worker.process.kill()
    worker.process.wait()
    assert results(worker, "a", "bbb") == [Result(1.0), Result(3.0)]


def test_large_items_and_large_results(worker, tmp_path):
    assert results(worker, "a" * 3_000_000) == [Result(3_000_000.0)]
    (tmp_path / "grow.py").write_text("def make(): return lambda size: 'x' * size\n")
    grown = Isolated(f"{tmp_path}/grow.py:make")
    short, long, last = grown.results([1000, 1 << 25, 1])
    assert (short.value, long.value, last.value) == ("x" * 1000, None, "x")
    grown.close()


def test_what_cannot_be_started():
    with pytest.raises(ValueError, match=r"^nothing can be made of it$"):
        Isolated(f"{HOSTILE}:make", ["fails"])
    with pytest.raises(ValueError, match="the child process ended with 3"):
        Isolated(f"{HOSTILE}:make", ["ends"])
    with pytest.raises(ValueError, match="KeyError: 'nothing'"):
        Isolated(f"{HOSTILE}:nothing")
    with pytest.raises(ValueError, match="ModuleNotFoundError: No module named 'no_such_module'"):
        Isolated("no_such_module:make")


def test_closing_ends_the_child():
    worker = Isolated("math:factorial", [3])  # factorial(3) is 6, which is not a function
    pid = worker.process.pid
    assert results(worker, 1)[0].fault == "raised TypeError: 'int' object is not callable"
    worker.close()
    assert not alive(pid)
    again = Isolated(f"{HOSTILE}:make")
    pid = again.process.pid
    del again
    assert not alive(pid)


def test_a_line_is_waited_for_no_longer_than_asked():
    reading, writing = os.pipe()
    try:
        os.write(writing, b"one\ntw")
        lines = Lines(reading)
        assert lines.read(1) == b"one"
        with pytest.raises(TimeoutError):
            lines.read(0.01)
        os.write(writing, b"o\n")
        assert lines.read(1) == b"two"
    finally:
        os.close(writing)
        os.close(reading)


PARENT = """
import sys
from policy_split.isolation.isolated import Isolated
worker = Isolated(sys.argv[1], seconds=600)
begun = worker.results(["process", sys.argv[2]])
print(worker.process.pid, next(begun).value, flush=True)
if sys.argv[3] == "wait":
    next(begun)
"""


@pytest.mark.parametrize("ends", [signal.SIGKILL, signal.SIGTERM, None])
def test_no_process_outlives_its_parent(ends):
    command = [sys.executable, "-c", PARENT, f"{HOSTILE}:make", "swallow", "wait" if ends else "leave"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2
        if ends:
            assert all(map(alive, pids))
            parent.send_signal(ends)
        parent.wait(timeout=30)
    assert soon(lambda: not any(map(alive, pids)))


def test_a_process_that_was_forked_has_a_child_of_its_own(worker):
    results(worker, "a")
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            said = [result.value for result in worker.results(["a", "bbb"])]
            os.write(writing, (json.dumps([said, worker.process.pid]) + "\n").encode())
            worker.close()
        finally:
            os._exit(0)
    os.close(writing)
    said, pid = json.loads(Lines(reading).read(60))
    os.close(reading)
    os.waitpid(child, 0)
    assert said == [1.0, 3.0]
    assert pid != worker.process.pid
    assert results(worker, "bbb") == [Result(3.0)]
