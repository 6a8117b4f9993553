"""A pytest plugin: every launch of a Triton kernel is compiled and its code executed on the CPU by `ttsem`.

`python -m ttsem.sanitize pytest` does the same for one process; as a plugin, each worker of pytest-xdist has it:

    PYTHONPATH=tests/support python -m pytest -p compiled_session -n 2 tests/compiled

Tensors of `device="cuda"` lie in the CPU's memory, and a launch that reads or writes outside of its tensors, whose
programs touch one element of which one is written, or whose result is undefined raises `ttsem.sanitize.KernelFault`.
"""

import contextlib
import os
from unittest import mock

import pytest
import torch
from triton.runtime.jit import JITFunction

SWITCHES = {"POLICY_SPLIT_TRITON_ON_CPU": "1", "POLICY_SPLIT_BACKEND": "triton"}
_open = contextlib.ExitStack()
_launched: list[str] = []  # names of the kernels, in their order


def launched() -> list[str]:
    """The kernels that were launched so far in this process, by name; the list goes on."""
    return _launched


@contextlib.contextmanager
def session():
    """ttsem's session, with what the package has to be told, and the launches counted."""
    from ttsem import sanitize

    with sanitize.session() as state:
        run = JITFunction.run

        def counted(self, *arguments, warmup=False, **options):
            if not warmup:
                _launched.append(self.fn.__name__)
            return run(self, *arguments, warmup=warmup, **options)

        JITFunction.run = counted
        torch.Tensor.is_cpu = property(lambda x: False)  # as ttsem makes is_cuda true: the way of a GPU's tensors
        capturing = mock.patch.object(torch.cuda, "is_current_stream_capturing", return_value=False)
        try:
            with capturing:
                yield state
        finally:
            del torch.Tensor.is_cpu


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests():
    """Before tests/conftest.py asks whether there is a GPU, and before a kernel is imported."""
    if "TRITON_INTERPRET" in os.environ:
        raise pytest.UsageError("TRITON_INTERPRET: an interpreted kernel is not compiled; unset it")
    os.environ.update(SWITCHES)
    _open.enter_context(session())


def pytest_unconfigure():
    _open.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Counted where the test runs: a worker's report brings the number to the process that prints it."""
    before = len(_launched)
    try:
        return (yield)
    finally:
        item.user_properties.append(("launches", len(_launched) - before))


def _total(reporter):
    ended = [
        report for kind in ("passed", "failed") for report in reporter.stats.get(kind, []) if report.when == "call"
    ]
    return sum(dict(report.user_properties)["launches"] for report in ended)


def pytest_sessionfinish(session, exitstatus):
    """A suite that launched nothing has tested nothing."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and exitstatus == pytest.ExitCode.OK and _total(reporter) == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    launches = _total(terminalreporter)
    terminalreporter.write_line(f"{launches} launches were compiled, executed and checked")
    if launches == 0:
        terminalreporter.write_line("no kernel was launched: this tested nothing", red=True)
