"""Whether Triton's maximum and minimum keep a NaN or drop it, no result of a kernel depends on it.

Compiled they drop it, and so does the interpreter of some versions; that of 3.6.0 keeps it.
"""

import numpy as np
import pytest
import torch

from policy_split import jensen_shannon_divergence, logprobs_and_entropy, mode_divergence, set_backend

pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("these kernels are compiled, not interpreted", allow_module_level=True)

import triton
import triton.language as tl
from triton.runtime import interpreter

INF, NAN = float("inf"), float("nan")
VOCABULARY = 2100  # whole tiles and a tail of float32
# What two rows hold, each at columns of its own: of the first tile, of a later one, of one lane of both.
PAIRS = {
    "a NaN": ({7: NAN}, {}),
    "two NaN": ({7: NAN}, {2099: NAN}),
    "an infinity": ({2070: INF}, {3: INF}),
    "an infinity and a NaN": ({7: INF, 71: NAN, 2070: NAN}, {0: NAN, 64: INF}),
    "-inf in both": ({7: -INF, 100: -INF}, {7: -INF, 2060: -INF}),
    "-inf in the first alone": ({7: -INF, 2099: -INF}, {}),
    "-inf and a NaN": (dict.fromkeys(range(2048), -INF) | {2070: NAN}, {7: -INF}),
    "nothing but -inf": (dict.fromkeys(range(VOCABULARY), -INF), {7: -INF}),
    "nothing but NaN": (dict.fromkeys(range(VOCABULARY), NAN), {7: -INF}),
    "a whole tile of -inf": (dict.fromkeys(range(2048), -INF), dict.fromkeys(range(2048), -INF)),
}


@triton.jit
def larger_and_smaller_kernel(x_ptr, out_ptr):
    x = tl.load(x_ptr)
    tl.store(out_ptr, tl.maximum(x, 1.0))
    tl.store(out_ptr + 1, tl.minimum(x, 1.0))
    tl.store(out_ptr + 2, tl.max(tl.load(x_ptr + tl.arange(0, 2)), 0))


def larger_and_smaller():
    x, out = torch.tensor([NAN, 1.0]), torch.zeros(3)
    larger_and_smaller_kernel[(1,)](x, out)
    return out.tolist()


@pytest.fixture(params=["kept", "dropped"])
def nan(request, monkeypatch):
    keeps = request.param == "kept"
    larger, smaller = (np.maximum, np.minimum) if keeps else (np.fmax, np.fmin)
    builder = interpreter.InterpreterBuilder
    monkeypatch.setattr(builder, "create_maxnumf", lambda self, x, y: self.binary_op(x, y, larger))
    monkeypatch.setattr(builder, "create_minnumf", lambda self, x, y: self.binary_op(x, y, smaller))
    if keeps:
        monkeypatch.setattr(np, "nanmax", np.max)
    return request.param


@pytest.fixture
def rows():
    """Two matrices (N, V), a row of each for each of PAIRS."""
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.randn(len(PAIRS), VOCABULARY, generator=generator) * 3 for _ in range(2)]
    for n, pair in enumerate(PAIRS.values()):
        for matrix, values in zip(matrices, pair, strict=True):
            matrix[n, list(values)] = torch.tensor(list(values.values()))
    yield [x.requires_grad_() for x in matrices]
    set_backend("auto")


def results(a, b):
    """Values, and gradients by each value alone: an upstream gradient of 0 takes a NaN away."""
    statistics = logprobs_and_entropy(a, torch.arange(5, 5 + len(a)))
    divergence = mode_divergence(a, b)
    outputs = [*statistics, *divergence, jensen_shannon_divergence(a, b, beta=0.3)]
    gradients = []
    for x in outputs:
        gradients += torch.autograd.grad(x.sum(), (a, b), retain_graph=True, allow_unused=True)
    return [x.detach() for x in (*outputs, *gradients) if x is not None]


def test_the_interpreter_is_changed(nan):
    kept = nan == "kept"
    larger, smaller, largest = larger_and_smaller()
    assert (larger != larger, smaller != smaller, largest != largest) == (kept, kept, kept)


def test_no_result_depends_on_it(nan, rows):
    set_backend("native")
    expected = results(*rows)
    set_backend("triton")
    for x, right in zip(results(*rows), expected, strict=True):
        for name, of_row, right_of_row in zip(PAIRS, x, right, strict=True):
            torch.testing.assert_close(
                of_row,
                right_of_row,
                rtol=2e-5,
                atol=2e-5,
                equal_nan=True,
                msg=lambda text, name=name: f"{name}: {text}",
            )
