"""The LM head, chunk by chunk, and a vocabulary in parts, on the compiled kernels."""

import compiled_calls as calls
import pytest
import torch
import torch.distributed as dist
import truth

from policy_split import linear_dual_mode_loss, linear_logprobs_and_entropy, linear_token_loss, logprobs_and_entropy
from policy_split_kernels import ops
from policy_split_kernels.contract import ELSEWHERE

TOKENS, VOCABULARY, DIM = 7, 517, 8
CHUNK = 3 * VOCABULARY * 4  # bytes of three tokens' float32 logits: three chunks

SCALED = ["scale_rows_kernel"] * 3  # the gradients of hidden, weight and bias by the upstream gradient


def head(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((TOKENS, DIM), (VOCABULARY, DIM), (VOCABULARY,))
    hidden, weight, bias = (torch.randn(shape, generator=generator) for shape in shapes)
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    return [x.to("cuda").requires_grad_() for x in (hidden, weight, bias)], targets.to("cuda")


def exactly(leaves):
    exact = [x.detach().double().requires_grad_() for x in leaves]
    return exact, torch.nn.functional.linear(*exact)


def assert_gradients(loss, leaves, expected, exact):
    for actual, right in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, exact), strict=True):
        assert (actual.double() - right).norm() <= 2e-6 * right.norm()


def test_statistics_in_chunks(launches):
    leaves, targets = head()
    hidden, weight, bias = leaves
    out = linear_logprobs_and_entropy(hidden, weight, targets, bias=bias, chunk_bytes=CHUNK)
    exact, logits = exactly(leaves)
    expected = truth.statistics(logits, targets)
    for actual, right in zip(out, expected, strict=True):
        torch.testing.assert_close(actual.double(), right, rtol=2e-6, atol=8e-6)
    assert_gradients(sum(x.sum() for x in out), leaves, sum(x.sum() for x in expected), exact)
    assert launches() == ["logprobs_entropy_kernel"] * 3 + ["logprobs_entropy_gradient_kernel"] * 3


def test_the_loss_in_chunks(launches):
    leaves, targets = head()
    hidden, weight, bias = leaves
    exact, logits = exactly(leaves)
    tokens = calls.loss_tokens(logits.float(), targets)
    out = linear_dual_mode_loss(
        hidden, weight, targets, bias=bias, chunk_bytes=CHUNK, **tokens, **calls.COEFFICIENTS
    )  # fmt: skip
    expected = truth.loss(logits, targets, **{k: x if k == "mode" else x.double() for k, x in tokens.items()},
                          **calls.COEFFICIENTS)  # fmt: skip
    torch.testing.assert_close(out.loss.double(), expected, rtol=1e-5, atol=1e-5)
    assert_gradients(out.loss, leaves, expected, exact)
    assert launches() == ["dual_mode_loss_kernel"] * 3 + SCALED


def test_any_loss_of_tokens_in_chunks(launches):
    leaves, targets = head()
    hidden, weight, bias = leaves
    out = linear_token_loss(
        hidden, weight, targets, lambda l, entropy, index: -l * (index + 1) - 0.5 * entropy, bias=bias,
        chunk_bytes=CHUNK,
    )  # fmt: skip
    exact, logits = exactly(leaves)
    l, entropy = truth.statistics(logits, targets)
    expected = (-l * torch.arange(1, TOKENS + 1) - 0.5 * entropy).mean()
    torch.testing.assert_close(out.loss.double(), expected, rtol=1e-5, atol=1e-5)
    assert_gradients(out.loss, leaves, expected, exact)
    assert launches() == ["logprobs_entropy_kernel", "logprobs_entropy_gradient_kernel"] * 3 + SCALED


def test_targets_in_another_part_of_the_vocabulary(launches):
    """Two parts of each row, and the numbers of the whole row for their gradients."""
    logits, targets = calls.random_rows(3, VOCABULARY, torch.float32)
    cut, exact = 200, logits.double().requires_grad_()
    targets[:] = torch.tensor([5, 300, 199])
    expected = truth.statistics(exact, targets)
    whole = ops.logprobs_entropy(logits[None], targets, torch.ones(1, device="cuda"), None, None, None)
    _, entropy, row_max, log_sum = whole
    upstream = calls.numbers(logits, 2)
    parts = []
    for part, local in ((logits[None, :, :cut], targets), (logits[None, :, cut:], targets - cut)):
        inside = torch.where((local >= 0) & (local < part.shape[-1]), local, ELSEWHERE)
        rows = (part, inside, torch.ones(1, device="cuda"), None, None, None)
        assert (ops.logprobs_entropy(*rows)[0] == 0).tolist() == (inside < 0).tolist()
        parts.append(ops.logprobs_entropy_gradient(*rows, row_max, log_sum, entropy, *upstream, None)[0])
    (right,) = torch.autograd.grad(expected, exact, [x.double() for x in upstream])
    truth.assert_gradient_close(torch.cat(parts, -1), right, torch.float32, sum(x.abs() * 4 for x in upstream))
    assert len(launches()) == 5


@pytest.fixture
def group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_the_public_way_of_a_split_vocabulary(launches, group):
    """A group of one process; that of several is tested with other backends, the arithmetic above."""
    logits, targets = calls.random_rows(3, VOCABULARY, torch.float32)
    leaf = logits.requires_grad_()
    out = logprobs_and_entropy(leaf, targets, process_group=group)
    exact = logits.detach().double().requires_grad_()
    expected = truth.statistics(exact, targets)
    for actual, right in zip(out, expected, strict=True):
        torch.testing.assert_close(actual.double(), right, rtol=2e-6, atol=8e-6)
    (gradient,), (right,) = (
        torch.autograd.grad(a.sum() + b.sum(), x) for (a, b), x in ((out, leaf), (expected, exact))
    )
    truth.assert_gradient_close(gradient, right, torch.float32, 4.0)
    assert launches() == ["logprobs_entropy_kernel", "logprobs_entropy_gradient_kernel"]
