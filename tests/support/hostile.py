"""Functions for `isolated` that do what a grader of hostile text may do; loaded by its child process as a file."""

import builtins
import contextlib
import os
import signal
import sys
import time

hoard = []


def make(kind="scores"):
    if kind == "fails":
        raise ValueError("nothing can be made of it")
    if kind == "ends":
        os._exit(3)
    sys.stdout.write("noise of an import\n")
    sys.stdout.flush()
    return act


def act(item):
    return ACTIONS[item]() if item in ACTIONS else float(len(item))


def spin():
    while True:
        pass


def swallow():
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(60)


def allocate():
    return float(len(bytearray(10 << 30)))


def keep_memory():
    hoard.append(bytearray(100 << 20))
    return 1.0


def need_memory():
    return float(len(bytearray(50 << 20)) > 0)


def kill_self():
    os.kill(os.getpid(), signal.SIGKILL)


def kill_server():
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)


def write_everywhere():
    print("1.0\n[0, 1.0, null]" * 50, flush=True)
    for descriptor in range(3, 64):
        with contextlib.suppress(OSError):
            os.write(descriptor, b"\x00\xff[[[garbage\n")
    return 1.0


def write_a_file():
    with open("hostile-file", "w") as file:
        file.write("x")
    return 1.0


def leave_a_process():
    if os.fork() == 0:
        time.sleep(60)
    return 1.0


def spoil():
    builtins.len = lambda _: 1000
    return 1.0


def recurse():
    return recurse()


ACTIONS = {
    "spin": spin,
    "swallow": swallow,
    "allocate": allocate,
    "keep memory": keep_memory,
    "need memory": need_memory,
    "exit": lambda: os._exit(0),
    "sys.exit": lambda: sys.exit(1),
    "kill self": kill_self,
    "kill server": kill_server,
    "write everywhere": write_everywhere,
    "write a file": write_a_file,
    "leave a process": leave_a_process,
    "spoil": spoil,
    "recurse": recurse,
    "raise": lambda: 1 / 0,
    "interrupt": lambda: (_ for _ in ()).throw(KeyboardInterrupt("mine")),
    "nan": lambda: float("nan"),
    "text": lambda: "1.0",
    "object": object,
    "process": os.getpid,
    "environment": lambda: [os.environ["CUDA_VISIBLE_DEVICES"], "torch" in sys.modules],
}
