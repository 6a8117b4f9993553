"""The same bits again: alone, in any batch, with any threads, a second time, beside a kernel, beyond 2^31 elements."""

import threading
import time

import pytest
import torch

from policy_split import dual_mode_loss, logprobs_and_entropy, mode_divergence
from policy_split_kernels import autograd

V = 2053
SETTINGS = {"entropy_coef": (0.1, 0.3), "kl_coef": (0.2, 0.05), "clip_delta": 2.0}


def batch(rows, dtype=torch.float32, device="cpu", vocabulary=V):
    """Arguments of all three functions, row by row."""
    generator = torch.Generator().manual_seed(rows)

    def normal(*size):
        return torch.randn(*size, generator=generator).to(device)

    return {
        "logits": (normal(rows, vocabulary) * 3).to(dtype),
        "other": (normal(rows, vocabulary) * 3).to(dtype),
        "targets": torch.randint(vocabulary, (rows,), generator=generator).to(device),
        "mode": torch.randint(2, (rows,), generator=generator).to(device),
        "mask": (torch.rand(rows, generator=generator) > 0.1).to(device),
        "temperature": normal(rows).abs() + 0.5,
        "upstream": normal(rows, 4),
        **{name: normal(rows) - 6 for name in ("old_logprobs", "ref_logprobs", "sampler_logprobs")},
        "advantages": normal(rows),
        "weights": normal(rows).abs(),
    }


def statistics(b):
    leaf = b["logits"].detach().requires_grad_()
    out = logprobs_and_entropy(leaf, b["targets"], mask=b["mask"], temperature=b["temperature"])
    return [*(x.detach() for x in out), *torch.autograd.grad(out, leaf, b["upstream"].unbind(-1)[:2])]


def loss(b, inplace=False):
    names = ("mode", "mask", "temperature", "old_logprobs", "ref_logprobs", "sampler_logprobs", "advantages", "weights")
    leaf = b["logits"].detach().requires_grad_()
    out = dual_mode_loss(
        leaf * 1.0 if inplace else leaf, b["targets"], **{name: b[name] for name in names}, **SETTINGS,
        inplace_gradient=inplace,
    )  # fmt: skip
    return [*out[1:], *torch.autograd.grad(out.loss * 3, leaf)]


def loss_inplace(b):
    return loss(b, inplace=True)


def divergence(b):
    leaves = [b[name].detach().requires_grad_() for name in ("logits", "other")]
    out = mode_divergence(*leaves, mask=b["mask"], temperature=b["temperature"])
    return [*(x.detach() for x in out), *torch.autograd.grad(out, leaves, b["upstream"].unbind(-1))]


FUNCTIONS = [statistics, loss, loss_inplace, divergence]
every_function = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)


def assert_same_bits(first, second):
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@every_function
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_does_not_depend_on_its_batch(device, function, dtype):
    b = batch(7, dtype, device)
    whole = function(b)
    assert_same_bits(whole, function(b))
    order = torch.tensor([3, 6, 0, 2, 5, 1, 4], device=device)
    assert_same_bits([x[order] for x in whole], function({name: x[order] for name, x in b.items()}))
    for n in (0, 6):
        assert_same_bits([x[n : n + 1] for x in whole], function({name: x[n : n + 1] for name, x in b.items()}))


@every_function
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", ["native"], indirect=True)
def test_threads_do_not_change_a_bit(backend, function, dtype):
    b = batch(64, dtype)  # several chunks of rows for each of three threads
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(function(b))
    finally:
        torch.set_num_threads(before)
    assert_same_bits(results[0], results[1])
    assert_same_bits(results[0], results[2])


@every_function
@pytest.mark.parametrize("backend", ["torch", "native"], indirect=True)
def test_two_kernels_at_once(backend, function):
    """Two Python threads: a call of the C++ library gives the interpreter's lock away."""
    inputs = [batch(24), batch(25)]
    expected = [function(b) for b in inputs]
    barrier, calls, wrong = threading.Barrier(2, timeout=60), [0, 0], []

    def work(k):
        torch.set_num_threads(1)
        barrier.wait()
        end = time.monotonic() + 60
        while min(calls) < 10 and time.monotonic() < end:  # neither stops before the other has worked beside it
            actual = function(inputs[k])
            wrong.extend(n for n, pair in enumerate(zip(actual, expected[k], strict=True)) if not torch.equal(*pair))
            calls[k] += 1

    threads = [threading.Thread(target=work, args=(k,)) for k in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert min(calls) >= 10


def token_losses(leaf, b, inplace=False):
    """The losses before their sum, (N,), differentiable token by token."""
    n = b["targets"].numel()
    coefficient = torch.full((n,), 0.2, device=leaf.device, dtype=b["weights"].dtype)
    vectors = ("advantages", "old_logprobs", "ref_logprobs", "sampler_logprobs", "weights")
    return autograd.loss_rows(
        leaf if leaf.dim() == 3 else leaf[None], b["targets"], 1 / b["temperature"], b["mask"], None, None,
        *(b[name] for name in vectors), coefficient, coefficient, "clip", 0.2, 0.2, None,
        2.0, [1.0, 1.05], False, None, inplace_gradient=inplace,
    )[0]  # fmt: skip


def graph(name, b):
    """(outputs per token, leaves) of each function."""
    leaves = [b["logits"].detach().requires_grad_()]
    if name == "statistics":
        return logprobs_and_entropy(leaves[0], b["targets"], mask=b["mask"]), leaves
    if name == "divergence":
        leaves.append(b["other"].detach().requires_grad_())
        return mode_divergence(*leaves, mask=b["mask"]), leaves
    return [token_losses(leaves[0], b)], leaves


@pytest.mark.parametrize("name", ["statistics", "loss", "divergence"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_a_second_backward_with_other_upstream_gradients(device, name, dtype):
    """Of a retained graph, per token: as that of a fresh graph; and what was handed out is not written again."""
    b = batch(4, dtype, device, vocabulary=300)
    if dtype == torch.float64:
        b = {key: x.double() if x.is_floating_point() else x for key, x in b.items()}
    outputs, leaves = graph(name, b)
    upstream = b["upstream"].to(outputs[0].dtype).unbind(-1)[: len(outputs)]
    doubled = [x * torch.tensor([2.0, -1.0, 0.0, 1.0], device=device, dtype=x.dtype) for x in upstream]
    first = torch.autograd.grad(outputs, leaves, upstream, retain_graph=True)
    kept = [x.clone() for x in first]
    second = torch.autograd.grad(outputs, leaves, doubled, retain_graph=True)
    third = torch.autograd.grad(outputs, leaves, upstream)
    assert_same_bits(first, kept)
    fresh_outputs, fresh_leaves = graph(name, b)
    fresh = torch.autograd.grad(fresh_outputs, fresh_leaves, doubled)
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 1e-3}[dtype]
    for x, y in zip((*second, *third), (*fresh, *first), strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance * 1e-1)
    assert all((x[2] == 0).all() for x in second)


@pytest.fixture(params=[(2**31 + 64, 4096), (4096, 2**31 + 64)], ids=["batches", "tokens"])
def far_apart(request):
    """Moves rows (4, V) to (2, 2, V) with 2^31 elements between them: memory asked for, and almost none touched."""

    def move(rows):
        try:
            storage = torch.empty(2**31 + 4096 + 64 + rows.shape[-1], dtype=rows.dtype)
        except RuntimeError:
            pytest.skip("no address space for 2^31 elements")
        view = storage.as_strided((2, 2, rows.shape[-1]), (*request.param, 1))
        return view.copy_(rows.view(view.shape))

    return move


@pytest.mark.parametrize("function", [statistics, loss, divergence], ids=lambda f: f.__name__)
@pytest.mark.parametrize("backend", ["torch", "native"], indirect=True)
def test_rows_beyond_2_to_the_31_elements(backend, far_apart, function):
    b = batch(4, torch.bfloat16, vocabulary=300)
    expected = function(b)
    far = {name: x.view(2, 2, *x.shape[1:]) for name, x in b.items()}
    far["logits"] = far_apart(b["logits"])
    if function is divergence:
        far["other"] = far_apart(b["other"])
    assert_same_bits([x.reshape(y.shape) for x, y in zip(function(far), expected, strict=True)], expected)


@pytest.mark.parametrize("backend", ["torch", "native", "triton"], indirect=True)
def test_gradients_written_beyond_2_to_the_31_elements(backend, far_apart):
    """In place, so that they lie as far apart as the logits; then scaled there."""
    if torch.cuda.is_available() and backend == "triton":
        pytest.skip("the memory is the host's")
    b = batch(4, torch.bfloat16, vocabulary=300)
    gradients = []
    for logits in (b["logits"].clone(), far_apart(b["logits"])):
        leaf = logits.requires_grad_()
        gradients += torch.autograd.grad(token_losses(leaf, b, inplace=True), leaf, b["weights"] * 3)
        assert gradients[-1].data_ptr() == leaf.data_ptr()
    assert torch.equal(gradients[0], gradients[1].reshape(4, 300))


@pytest.mark.parametrize("backend", ["torch", "native"], indirect=True)
def test_a_keep_mask_beyond_2_to_the_31_elements(backend, far_apart):
    b = batch(4, torch.bfloat16, vocabulary=300)
    keep = b["other"] > -1
    expected = logprobs_and_entropy(b["logits"], b["targets"], keep_mask=keep)
    shape = (2, 2)
    actual = logprobs_and_entropy(b["logits"].view(*shape, -1), b["targets"].view(shape), keep_mask=far_apart(keep))
    assert_same_bits([x.flatten() for x in actual], expected)
