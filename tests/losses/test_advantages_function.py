"""Advantages that are a function of the log-probs of all tokens: one call, the same gradients, one product less."""

import pytest
import torch

from policy_split import dual_mode_loss, linear_dual_mode_loss, linear_logprobs_and_entropy
from policy_split_kernels.lm_head import products

N, D, V = 12, 5, 37


def case(dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden, weight = (torch.randn(n, D, generator=generator, dtype=dtype).requires_grad_() for n in (N, V))
    targets = torch.randint(V, (3, 4), generator=generator)
    targets[1, 2] = -100
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[2, 3] = False
    mode = torch.tensor([[0], [1], [0]]).expand(3, 4)
    return hidden.view(3, 4, D), weight, targets, {"mode": mode, "mask": mask, "entropy_coef": (0.0, 0.1)}


def standardised(logprobs, entropy):
    """No token's advantage is known before all log-probs are."""
    return (logprobs - logprobs.mean()) / logprobs.std() + entropy


@pytest.mark.parametrize("chunk_bytes", [None, 5 * 40 * 8], ids=["one chunk", "chunks of five tokens"])
@pytest.mark.parametrize("ratio_level", ["token", "sequence"])
def test_the_same_as_two_calls(chunk_bytes, ratio_level):
    hidden, weight, targets, options = case()
    options |= {"chunk_bytes": chunk_bytes}
    with torch.no_grad():
        logprobs, entropy = linear_logprobs_and_entropy(hidden, weight, targets, mask=options["mask"])
    options |= {"ratio_level": ratio_level, "old_logprobs": logprobs + 0.1}
    expected = linear_dual_mode_loss(hidden, weight, targets, advantages=standardised(logprobs, entropy), **options)
    calls = []

    def advantages(*vectors):
        calls.append(vectors)
        return standardised(*vectors)

    out = linear_dual_mode_loss(hidden, weight, targets, advantages=advantages, **options)
    ((seen, of_entropy),) = calls
    assert seen.shape == of_entropy.shape == targets.shape
    assert not seen.requires_grad
    torch.testing.assert_close((seen, of_entropy), (logprobs, entropy))
    for name, value in expected._asdict().items():
        torch.testing.assert_close(getattr(out, name), value, msg=lambda m, n=name: f"{n}: {m}")
    gradients = (torch.autograd.grad(x.loss, (hidden, weight)) for x in (out, expected))
    for found, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(("chunk_bytes", "made"), [(None, 1), (5 * 40 * 8, 4)])
def test_one_chunk_makes_its_logits_once(monkeypatch, chunk_bytes, made):
    """10 tokens count: in chunks of 5 two are made, and made again."""
    hidden, weight, targets, options = case()
    calls, logits = [], products.Products.logits
    monkeypatch.setattr(
        products.Products, "logits", lambda self, x, out: (calls.append(len(x)), logits(self, x, out))[1]
    )
    linear_dual_mode_loss(hidden, weight, targets, advantages=standardised, chunk_bytes=chunk_bytes, **options)
    assert calls == ([10] if made == 1 else [5] * 4)


def test_a_second_backward_and_half_precision():
    hidden, weight, targets, options = case(torch.float16)
    loss = linear_dual_mode_loss(hidden, weight, targets, advantages=standardised, **options).loss
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    again = torch.autograd.grad(loss, (hidden, weight))
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    exact = dual_mode_loss(
        (hidden.double() @ weight.double().T),
        targets,
        advantages=standardised(
            *linear_logprobs_and_entropy(hidden.detach(), weight.detach(), targets, mask=options["mask"])
        ),
        **options,
    ).loss
    assert loss.item() == pytest.approx(exact.item(), rel=1e-2)


@pytest.mark.parametrize(
    ("function", "error", "says"),
    [
        (lambda logprobs, entropy: logprobs[0], ValueError, r"advantages has shape \(4,\); expected \(3, 4\)"),
        (lambda logprobs, entropy: 1.0, TypeError, "advantages must be a tensor"),
    ],
)
def test_what_it_may_not_return(function, error, says):
    hidden, weight, targets, options = case()
    with pytest.raises(error, match=says):
        linear_dual_mode_loss(hidden, weight, targets, advantages=function, **options)


@pytest.mark.parametrize("chunk_bytes", [None, 5 * 40 * 8], ids=["one chunk", "chunks of five tokens"])
@pytest.mark.parametrize(
    "learned",
    [
        lambda scale: lambda logprobs, entropy: scale * logprobs,
        lambda scale: lambda logprobs, entropy: scale.expand(logprobs.shape),
        lambda scale: lambda logprobs, entropy: torch.stack([entropy, scale * entropy]).sum(0),
    ],
    ids=["a factor", "itself", "a sum"],
)
def test_a_tensor_of_its_own_that_requires_grad_is_never_silently_constant(chunk_bytes, learned):
    hidden, weight, targets, options = case()
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    options |= {"chunk_bytes": chunk_bytes}
    with pytest.raises(NotImplementedError, match="advantages are a function whose result requires grad, by tensors"):
        linear_dual_mode_loss(hidden, weight, targets, advantages=learned(scale), **options)
    with torch.no_grad():
        plain = linear_dual_mode_loss(hidden, weight, targets, advantages=learned(scale), **options).loss
    detached = linear_dual_mode_loss(hidden, weight, targets, advantages=learned(scale.detach()), **options).loss
    torch.testing.assert_close(plain, detached.detach())

    def apart():
        """As the error says: the results of the one function, the tensor of the other."""
        scores = linear_logprobs_and_entropy(hidden, weight, targets, mask=options["mask"])
        return learned(scale)(*(x.detach() for x in scores))

    loss = linear_dual_mode_loss(hidden, weight, targets, advantages=apart(), **options).loss
    torch.testing.assert_close(loss, detached)
    found = torch.autograd.grad(loss, scale)[0]
    assert found != 0
    options |= {"ratio_level": "sequence", "old_logprobs": torch.zeros(3, 4, dtype=torch.float64)}
    both = [
        torch.autograd.grad(linear_dual_mode_loss(hidden, weight, targets, advantages=x, **options).loss, scale)[0]
        for x in (learned(scale), apart())
    ]
    torch.testing.assert_close(*both)  # where it can have its gradient, it has it
    assert both[0] != 0
