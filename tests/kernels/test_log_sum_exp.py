"""The log-sum-exp as a result: values and gradients against float64, alone and together with log-probs and entropy."""

import pytest
import torch
import truth
from linear_cases import Head, relative_error

from policy_split import (
    LogprobsEntropyLse,
    linear_logprobs_and_entropy,
    linear_logprobs_entropy_lse,
    logprobs_and_entropy,
    logprobs_entropy_lse,
)

ROWS, V = 6, 131  # not a multiple of any vector
UPSTREAM = torch.tensor([[1.0, -0.5, 0.0, 2.0, 0.3, 1.0], [0.0, 1.0, 0.7, 0.0, -1.0, 0.2], [1.0, 0.0, -3.0, 1, 2, 0.1]])


def inputs(dtype, device="cpu"):
    generator = torch.Generator().manual_seed(3)
    logits = (4 * torch.randn(ROWS, V, generator=generator)).to(dtype)
    keep = torch.rand(ROWS, V, generator=generator) > 0.2
    targets = torch.randint(V, (ROWS,), generator=generator)
    keep[torch.arange(ROWS), targets] = True
    return logits.to(device), targets.to(device), keep.to(device)


def right(logits, targets, temperature, softcap, keep):
    """(logprobs, entropy, lse) in float64."""
    x = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    x = x if keep is None else x.masked_fill(~keep, -torch.inf)
    scale = torch.as_tensor(temperature, dtype=torch.float64).to(x.device).reshape(-1, 1)
    return *truth.statistics(logits, targets, temperature, softcap, keep), torch.logsumexp(x / scale, -1)


@pytest.mark.parametrize("dtype", truth.DTYPES, ids=str)
@pytest.mark.parametrize("options", ["plain", "everything"])
def test_values_and_gradients(backend, device, dtype, options):
    logits, targets, keep = inputs(dtype, device)
    temperature, softcap = 1.0, None
    if options == "everything":
        temperature, softcap = torch.linspace(0.5, 2, ROWS, device=device), 9.0
    keep = keep if options == "everything" else None
    exact, leaf = logits.double().requires_grad_(), logits.requires_grad_()
    expected = right(exact, targets, temperature, softcap, keep)
    out = logprobs_entropy_lse(leaf, targets, temperature=temperature, softcap=softcap, keep_mask=keep)
    assert isinstance(out, LogprobsEntropyLse)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for x, y in zip(out, expected, strict=True):
        torch.testing.assert_close(x, y.to(wide), rtol=2e-6, atol=2e-6)
    upstream = UPSTREAM.to(device)
    for wanted in ([2], [0, 1, 2]):
        vectors = [upstream[k] for k in wanted]
        of_ours = torch.autograd.grad([out[k] for k in wanted], leaf, [x.to(wide) for x in vectors], retain_graph=True)
        of_truth = torch.autograd.grad(
            [expected[k] for k in wanted], exact, [x.double() for x in vectors], retain_graph=True
        )
        truth.assert_gradient_close(of_ours[0], of_truth[0], dtype, terms=upstream.abs().sum(0))


def test_the_others_are_those_of_the_pair(backend, device):
    logits, targets, _ = inputs(torch.float32, device)
    pair, out = logprobs_and_entropy(logits, targets), logprobs_entropy_lse(logits, targets)
    assert torch.equal(pair.logprobs, out.logprobs)
    assert torch.equal(pair.entropy, out.entropy)


def test_a_large_offset_is_in_it(backend, device):
    logits = torch.tensor([[2000.0, 2000.0, 2000.0, 2000.0]], device=device)
    out = logprobs_entropy_lse(logits, torch.tensor([0], device=device), temperature=0.5)
    torch.testing.assert_close(out.lse.cpu(), torch.tensor([4001.3862944]))
    torch.testing.assert_close(out.logprobs.cpu(), torch.tensor([-1.3862944]))


def test_rows_that_do_not_count(backend, device):
    logits, targets, _ = inputs(torch.float32, device)
    logits[1], logits[2], logits[3, 5:] = torch.nan, -torch.inf, -torch.inf
    targets[0], targets[3] = -100, 1
    mask = torch.tensor([1, 0, 1, 1, 1, 1], device=device)
    leaf = logits.requires_grad_()
    lse = logprobs_entropy_lse(leaf, targets, mask=mask).lse
    assert lse[:2].tolist() == [0, 0]
    assert lse[2] == -torch.inf
    torch.testing.assert_close(lse[3], logits[3, :5].detach().logsumexp(0))
    (gradient,) = torch.autograd.grad(lse[[0, 1, 3]].sum(), leaf)
    assert not gradient[:2].any()
    assert not gradient[3, 5:].any()
    torch.testing.assert_close(gradient[3, :5], logits[3, :5].detach().softmax(0))


def test_every_derivative():
    logits, targets, _ = inputs(torch.float64)
    temperature = torch.linspace(0.7, 1.5, ROWS, dtype=torch.float64).requires_grad_()

    def lse(x, t):
        return logprobs_entropy_lse(x, targets, temperature=t).lse

    leaf = logits[:, :7].clone().requires_grad_()
    targets = targets % 7
    assert torch.autograd.gradcheck(lse, (leaf, temperature), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(lse, (leaf, temperature))
    by_row = torch.func.vmap(torch.func.grad(lambda x, y: logprobs_entropy_lse(x, y).lse))(leaf.detach(), targets)
    torch.testing.assert_close(by_row, leaf.detach().softmax(-1))


OPTIONS = {"temperature": 0.7, "softcap": 5.0, "logit_scale": 1.5}


class TestLmHead:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
    def test_like_that_of_logits(self, backend, dtype):
        head = Head(dtype=dtype)
        options = {"bias": head.bias, "mask": head.mask, "chunk_bytes": 1000}
        out = linear_logprobs_entropy_lse(head.hidden, head.weight, head.targets, **options, **OPTIONS)
        logits = head.logits(OPTIONS["logit_scale"])
        rest = {"temperature": 0.7, "softcap": 5.0, "mask": head.mask}
        expected = logprobs_entropy_lse(logits, head.targets, **rest)
        weights = head.tokens["weights"].double()
        loss = (weights * (out.lse.double().square() - out.logprobs.double())).sum()
        exact = (weights * (expected.lse.square() - expected.logprobs)).sum()
        tolerance = 1e-12 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(out.lse.double(), expected.lse, rtol=tolerance, atol=tolerance)
        gradients = torch.autograd.grad(loss, head.leaves)
        assert relative_error(gradients, torch.autograd.grad(exact, head.exact)) < tolerance
        pair = linear_logprobs_and_entropy(head.hidden, head.weight, head.targets, **options, **OPTIONS)
        assert torch.equal(pair.entropy, out.entropy)

    def test_no_token_counts(self):
        head = Head()
        out = linear_logprobs_entropy_lse(head.hidden, head.weight, head.targets, mask=torch.zeros(23))
        assert not out.lse.any()
        assert not torch.autograd.grad(out.lse.sum(), head.weight)[0].any()


@pytest.mark.parametrize("function", ["logits", "hidden"])
def test_in_a_graph(function):
    torch._dynamo.reset()
    head = Head(masked=False)

    def z_loss(hidden, weight):
        if function == "hidden":
            return linear_logprobs_entropy_lse(hidden, weight, head.targets).lse.square().sum()
        return logprobs_entropy_lse(hidden @ weight.T, head.targets).lse.square().sum()

    leaves = (head.hidden, head.weight)
    out, expected = torch.compile(z_loss, fullgraph=True, backend="aot_eager")(*leaves), z_loss(*leaves)
    torch.testing.assert_close(out, expected)
    assert relative_error(torch.autograd.grad(out, leaves), torch.autograd.grad(expected, leaves)) < 1e-6
