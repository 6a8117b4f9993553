"""Runs tests against copies of the kernels with one text replaced: `python mutation_run.py FOLDER < mutants.json`.

Prints one JSON line for each mutant as it ends: its name, a verdict and the end of pytest's output. torch and pytest
are imported once; each mutant is a fork. A verdict of "failed" needs an assertion that did not hold: a mutant that only
cannot be imported, built or run tells nothing about the tests.
"""

import io
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
import traceback
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.connection import wait
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = os.environ["HIP_VISIBLE_DEVICES"] = (
    ""  # a fork cannot use the device of its parent
)
os.environ.pop("CI", None)  # its profile of hypothesis shrinks, which takes long and finds nothing new

import hypothesis
import pytest
import torch
import torch._dynamo  # as the first call of an operator does
import triton  # noqa: F401

ROOT = Path(__file__).parents[2]
AT_ONCE = 2
SECONDS = 100  # of one mutant
# Not optimised: built in a second, and the formulas are the same.
COMPILE = [
    *("c++", "-std=c++17", "-O0", "-w", "-shared", "-fPIC", "-fopenmp", "-fvisibility=hidden"),
    *("-fno-math-errno", "-fno-trapping-math", '-DPS_INSTRUCTION_SET="default"'),
]


def copy_of_kernels(folder, mutant):
    """The package under its import name, with the mutant's text replaced and its library built if that is in C++."""
    kernels = Path(folder) / mutant["name"]
    shutil.copytree(ROOT / "kernels", kernels, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    package = kernels / "policy_split_kernels"
    if mutant["file"] is not None:
        path = (kernels if mutant["backend"] == "native" else package) / mutant["file"]
        text = path.read_text()
        assert text.count(mutant["text"]) == 1, f"{text.count(mutant['text'])} times in {mutant['file']}"
        path.write_text(text.replace(mutant["text"], mutant["broken"]))
    if mutant["backend"] == "native":
        library = package / "cpu" / "libpolicy_split_kernels_default.so"
        sources = sorted(map(str, (kernels / "cpp").glob("*.cpp")))
        subprocess.run([*COMPILE, *sources, "-o", str(library)], check=True)
    return package


class Assertions:
    """What failed, and whether it was an assertion."""

    def __init__(self):
        self.seen = []

    def pytest_exception_interact(self, call):
        self.seen.append(call.excinfo)

    def failed(self):
        return any(x.errisinstance(AssertionError) or "AssertionError" in repr(x.value) for x in self.seen)


def verdict_of(mutant, folder):
    package = copy_of_kernels(folder, mutant)
    sys.path.insert(0, str(package.parent))
    import policy_split_kernels

    assert Path(policy_split_kernels.__file__).parent == package
    hypothesis.settings.register_profile(
        "mutation", derandomize=True, database=None, max_examples=30,
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    )  # fmt: skip
    hypothesis.settings.load_profile("mutation")
    files = sorted({test.split()[0] for test in mutant["tests"]})
    chosen = " or ".join(f"({test.split(maxsplit=1)[1]})" for test in mutant["tests"])
    assertions = Assertions()
    options = [
        "-x",
        "-q",
        "--tb=short",
        "--assert=plain",
        "-p",
        "no:cacheprovider",
        "-k",
        f"[{mutant['backend']} and ({chosen})",
    ]
    code = pytest.main([*options, *(str(ROOT / "tests" / name) for name in files)], plugins=[assertions])
    if code == pytest.ExitCode.OK:
        return "passed"
    return "failed" if code == pytest.ExitCode.TESTS_FAILED and assertions.failed() else f"broken: pytest says {code!r}"


def child(mutant, folder, report):
    output, start = io.StringIO(), time.perf_counter()
    os.chdir(ROOT)
    torch.set_num_threads(1)
    with redirect_stdout(output), redirect_stderr(output):
        try:
            verdict = verdict_of(mutant, folder)
        except BaseException:
            traceback.print_exc()
            verdict = "broken: an exception"
    seconds = time.perf_counter() - start
    report.send({"name": mutant["name"], "verdict": verdict, "seconds": seconds, "output": output.getvalue()[-3000:]})


def ended(mutant, process, receiver, deadline):
    """The report of a process, or why there will be none; None while there may be one."""
    if receiver.poll():
        return receiver.recv()
    late = time.monotonic() > deadline
    if process.is_alive() and not late:
        return None
    process.kill()
    verdict = f"broken: {'too slow' if late else f'exit code {process.exitcode}'}"
    return {"name": mutant["name"], "verdict": verdict, "seconds": 0, "output": ""}


def main(folder):
    context = multiprocessing.get_context("fork")
    waiting, running = json.load(sys.stdin), []
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            mutant = waiting.pop(0)
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=child, args=(mutant, folder, sender))
            process.start()
            sender.close()
            running.append((mutant, process, receiver, time.monotonic() + SECONDS))
        wait([handle for _, process, receiver, _ in running for handle in (process.sentinel, receiver)], timeout=5)
        for entry in list(running):
            report = ended(*entry)
            if report is not None:
                print(json.dumps(report), flush=True)
                entry[1].join()
                running.remove(entry)


if __name__ == "__main__":
    main(sys.argv[1])
