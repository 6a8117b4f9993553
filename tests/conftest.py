"""What every test gets: each backend in turn, Triton by its interpreter without a GPU, accelerate as it was."""

import os
import sys

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before any kernel is imported: Triton then computes on CPU tensors

from policy_split_kernels import backends

settings.register_profile("repeatable", derandomize=True)
if os.environ.get("CI"):  # elsewhere every run tries other examples
    settings.load_profile("repeatable")
torch.set_num_threads(1)  # small tensors; and threads that wait for each other are slow on a machine that is shared


@pytest.fixture(autouse=True, scope="module")
def accelerate_as_it_was():
    """No file hands on accelerate's state, of which a process has one, nor the precision that arguments put aside."""
    yield
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state(reset_partial_state=True)
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)


@pytest.fixture(params=["torch", "native", "triton"])
def backend(request):
    """Runs the test once for each backend."""
    previous = backends._chosen
    backends.set_backend(request.param)
    yield request.param
    backends._chosen = previous


@pytest.fixture
def device(backend):
    """Where the tensors of the test's backend lie."""
    return "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"
