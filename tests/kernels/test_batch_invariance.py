"""Which backends give a row the same bits in every batch, at a real vocabulary; an LM head by chunks of one shape."""

import pytest
import torch
from linear_cases import Head

from policy_split import (
    dual_mode_loss,
    linear_dual_mode_loss,
    linear_logprobs_and_entropy,
    linear_logprobs_entropy_lse,
    linear_token_loss,
    logprobs_and_entropy,
    mode_divergence,
)
from policy_split_kernels.lm_head import chunks

V = 151936  # of Qwen3
ROWS = 5
# Triton's interpreter takes seconds for a row of V; of this size a program still walks over several tiles.
VOCABULARY = {"native": V, "triton": 17001}
PLACES = ([0], [4], [3, 1], [4, 3, 2, 1, 0])


def of_rows(logits, other, targets, upstream):
    """Results and gradients of each row, of every function of logits."""
    leaf, leaf_b = logits.clone().requires_grad_(), other.clone().requires_grad_()
    statistics = logprobs_and_entropy(leaf, targets, temperature=0.7)
    (by_statistics,) = torch.autograd.grad(statistics, leaf, [upstream, 2 * upstream])
    tokens = {"advantages": upstream, "mode": targets % 2, "entropy_coef": (0.1, 0.2), "weights": upstream.abs()}
    out = dual_mode_loss(leaf, targets, **tokens)
    (by_loss,) = torch.autograd.grad(out.loss, leaf)
    pair = mode_divergence(leaf, leaf_b)
    by_pair = torch.autograd.grad(pair[:2], (leaf, leaf_b), [upstream, 3 * upstream])
    return [x.detach() for x in (*statistics, by_statistics, *out[1:4], by_loss, *pair, *by_pair)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", ["native", "triton"], indirect=True)
def test_rows_of_a_real_vocabulary(backend, device, dtype):
    generator = torch.Generator().manual_seed(1)
    vocabulary = V if device == "cuda" else VOCABULARY[backend]
    logits, other = (3 * torch.randn(ROWS, vocabulary, generator=generator).to(dtype).to(device) for _ in range(2))
    targets = torch.randint(vocabulary, (ROWS,), generator=generator).to(device)
    upstream = torch.randn(ROWS, generator=generator).to(device)
    whole = of_rows(logits, other, targets, upstream)
    for places in PLACES if backend == "native" else PLACES[2:3]:
        part = of_rows(*(x[places] for x in (logits, other, targets, upstream)))
        assert all(torch.equal(x[places], y) for x, y in zip(whole, part, strict=True)), places


def head_functions(head):
    """Each gives the vectors of its tokens."""
    tokens = {name: head.tokens[name] for name in ("advantages", "mode", "weights")}

    def dual_mode(hidden, weight, targets, places, **options):
        rest = {name: x[places] for name, x in tokens.items()}
        out = linear_dual_mode_loss(hidden, weight, targets, **rest, entropy_coef=(0.1, 0.2), **options)
        return out.loss, out[1:4]

    def token_loss(hidden, weight, targets, places, **options):
        weights = tokens["weights"][places]
        out = linear_token_loss(hidden, weight, targets, lambda l, e, i: l.exp() - e, weights=weights, **options)
        return out.loss, out[1:]

    def statistics(hidden, weight, targets, places, **options):
        out = linear_logprobs_and_entropy(hidden, weight, targets, **options)
        return (tokens["weights"][places] * (out.logprobs + out.entropy)).sum(), out

    def lse(hidden, weight, targets, places, **options):
        out = linear_logprobs_entropy_lse(hidden, weight, targets, **options)
        return (tokens["weights"][places] * out.lse).sum(), out

    return {"dual_mode": dual_mode, "token_loss": token_loss, "statistics": statistics, "lse": lse}


def of_tokens(function, head, places, **options):
    """What belongs to some of the tokens alone: vectors, and the gradient of their hidden states."""
    hidden = head.hidden.detach()[places].requires_grad_()
    loss, vectors = function(
        hidden, head.weight, head.targets[places], places, bias=head.bias, batch_invariant=True, **options
    )
    return [*(x.detach() for x in vectors), torch.autograd.grad(loss, hidden)[0]]


CHUNK_TOKENS = 16
PARTS = [list(range(37)), [36], [3, 0], [*range(30, 5, -1)], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 36]]


@pytest.mark.parametrize("name", ["dual_mode", "token_loss", "statistics", "lse"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", ["native"], indirect=True)
def test_tokens_of_an_lm_head(backend, name, dtype):
    head = Head(tokens=37, vocabulary=2053, dim=40, dtype=dtype, masked=False)
    options = {"chunk_bytes": CHUNK_TOKENS * 2053 * 4}
    function = head_functions(head)[name]
    whole = of_tokens(function, head, PARTS[0], **options)
    for places in PARTS[1:]:
        part = of_tokens(function, head, places, **options)
        assert all(torch.equal(x[places], y) for x, y in zip(whole, part, strict=True)), places
    mask = torch.arange(37) % 3 > 0  # tokens that do not count are not computed, and move the others
    masked = of_tokens(function, head, PARTS[0], mask=mask, **options)
    assert all(torch.equal(x[mask], y[mask]) for x, y in zip(whole, masked, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("masked", [True, False])
def test_values_are_those_of_any_other_chunks(dtype, masked):
    head = Head(dtype=dtype, masked=masked)
    gradients = []
    for options in ({"batch_invariant": True, "chunk_bytes": 57 * 8 * 7}, {}):
        out = head.dual_mode(**options)
        gradients.append([out.loss.detach(), *torch.autograd.grad(out.loss, head.leaves)])
    tolerance = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float64: 1e-12}[dtype]
    for x, y in zip(*gradients, strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("tokens", [0, 1, 5, 8])
def test_every_product_has_one_shape(monkeypatch, tokens):
    """The price: a call costs whole chunks, whatever the number of its tokens."""
    shapes = set()
    real = chunks.Products.logits

    def logits(self, x, out):
        shapes.add((tuple(x.shape), out.stride()))
        real(self, x, out)

    monkeypatch.setattr(chunks.Products, "logits", logits)
    head = Head(tokens=tokens, masked=False)
    out = head.statistics(batch_invariant=True, chunk_bytes=57 * 4 * 3)
    assert out.logprobs.shape == (tokens,)
    assert shapes == ({((3, 8), (64, 1))} if tokens else set())


def test_what_is_no_bool():
    with pytest.raises(TypeError, match="batch_invariant must be a bool, got 'yes'"):
        Head().statistics(batch_invariant="yes")
