"""Tests of the compiled kernels run under the plugin `compiled_session` alone (make test-compiled)."""

import sys

import pytest
import torch

if "compiled_session" not in sys.modules:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def memory_that_nobody_wrote(monkeypatch):
    """Holds NaN: a result that a kernel forgot is none that happens to be right."""
    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, _poisoned(getattr(torch, name)))


def _poisoned(allocate):
    def poisoned(*arguments, **options):
        x = allocate(*arguments, **options)
        with torch.no_grad():
            return x.fill_(torch.nan if x.is_floating_point() else 1)

    return poisoned


@pytest.fixture
def launches():
    """The names of the kernels that this test has launched, in their order."""
    from compiled_session import launched

    before = len(launched())
    return lambda: launched()[before:]
