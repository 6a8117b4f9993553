"""What autograd, scaling, checkpointing and callers do with the LM head's functions: right, or a clear error."""

import pytest
import torch
from linear_cases import Head, relative_error
from torch import nn
from torch.utils.checkpoint import checkpoint

from policy_split import linear_dual_mode_loss, linear_logprobs_and_entropy, linear_token_loss

CHUNK = 5 * 64 * 4  # bytes of five tokens' logits
LOSSES = ["dual_mode", "token_loss"]


def loss_of(head, function, **options):
    if function == "statistics":
        logprobs, entropy = head.statistics(chunk_bytes=CHUNK, **options)
        return (logprobs + entropy).sum()
    arguments = (head.policy_loss,) if function == "token_loss" else ()
    return getattr(head, function)(*arguments, chunk_bytes=CHUNK, **options).loss


def gradients_of(head, loss, **options):
    return torch.autograd.grad(loss, head.leaves, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("function", [*LOSSES, "statistics"])
@pytest.mark.parametrize("upstream", [1.0, -0.375, 0.0])
def test_upstream(function, upstream, dtype):
    head = Head(dtype=dtype)
    one = gradients_of(head, loss_of(head, function))
    scaled = gradients_of(head, upstream * loss_of(head, function))
    for a, b in zip(one, scaled, strict=True):
        torch.testing.assert_close(b, (a.float() * upstream).to(dtype), rtol=2**-7, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("function", [*LOSSES, "statistics"])
def test_second_backward(function, dtype):
    head = Head(dtype=dtype)
    loss = loss_of(head, function)
    first = gradients_of(head, 3 * loss, retain_graph=True)
    first = [x.clone() for x in first]
    again = gradients_of(head, 3 * loss, retain_graph=True)
    assert relative_error(again, first) < 1e-2 if dtype != torch.float32 else 1e-6
    half = gradients_of(head, loss * 0.5)
    for a, b in zip(first, half, strict=True):
        torch.testing.assert_close(a.float(), 6 * b.float(), rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize("function", LOSSES)
def test_given_gradients_are_the_callers(function):
    """The first backward gives its memory away: what the caller does to it does not come back."""
    head = Head()
    loss = loss_of(head, function)
    right = [x.clone() for x in gradients_of(head, loss, retain_graph=True)]
    for gradient in gradients_of(head, loss, retain_graph=True):
        gradient.fill_(torch.nan)
    assert relative_error(gradients_of(head, loss), right) < 1e-6


@pytest.mark.parametrize("function", [*LOSSES, "statistics"])
def test_no_second_derivative(function):
    head = Head()
    loss = loss_of(head, function)
    with pytest.raises(RuntimeError, match="create_graph=True is not supported"):
        gradients_of(head, loss, create_graph=True)


def test_a_weight_changed_in_place_is_noticed():
    head = Head()
    loss = loss_of(head, "dual_mode")
    gradients_of(head, loss, retain_graph=True)
    with torch.no_grad():
        head.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradients_of(head, loss)


@pytest.mark.parametrize("function", LOSSES)
def test_accumulation(function):
    head, other = Head(seed=1), Head(seed=2)
    other.weight = head.weight
    loss_of(head, function).backward()
    loss_of(other, function).backward()
    right = head.weight.grad.clone()
    head.weight.grad = None
    (loss_of(head, function) + loss_of(other, function)).backward()
    torch.testing.assert_close(head.weight.grad, right)


@pytest.mark.parametrize("function", [*LOSSES, "statistics"])
def test_float16_gradients_survive_under_a_loss_scale(function):
    """Formed before the scale reaches them, the gradients of a small weight would be 0 in float16."""
    head = Head(dtype=torch.float16)
    exact = Head(dtype=torch.float64)
    with torch.no_grad():
        for leaf, other in zip(exact.leaves, head.leaves, strict=True):
            leaf.copy_(other)
    exact.tokens = {name: x.double() if x.is_floating_point() else x for name, x in head.tokens.items()}
    small, scaler = 2.0**-24, torch.amp.GradScaler("cpu", init_scale=2.0**22)
    optimizer = torch.optim.SGD(head.leaves, lr=1.0)
    scaler.scale(small * loss_of(head, function)).backward()
    for leaf, right in zip(head.leaves, gradients_of(exact, loss_of(exact, function)), strict=True):
        torch.testing.assert_close(leaf.grad.double() * 4, right, rtol=5e-3, atol=5e-3)
    assert optimizer.param_groups[0]["lr"] == 1.0


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("function", [*LOSSES, "statistics"])
def test_activation_checkpointing(function, use_reentrant):
    head = Head()
    right = gradients_of(head, loss_of(head, function))

    def body(hidden):
        plain, head.hidden = head.hidden, hidden * 1.0
        try:
            return loss_of(head, function)
        finally:
            head.hidden = plain

    checkpoint(body, head.hidden, use_reentrant=use_reentrant).backward()
    assert relative_error([leaf.grad for leaf in head.leaves], right) < 1e-6


@pytest.mark.parametrize("function", LOSSES)
def test_tied_embeddings(function):
    head = Head(bias=False)
    ids = torch.arange(23) % 57

    def gradient(fused):
        weight = head.weight.detach().clone().requires_grad_()
        other = Head(bias=False)
        other.hidden, other.weight = torch.tanh(nn.functional.embedding(ids, weight)), weight
        if fused:
            loss = loss_of(other, function)
        else:
            logprobs, entropy = torch_statistics(other)
            valid = other.valid.nonzero()[:, 0]
            losses = other.policy_loss(logprobs[valid], entropy[valid], valid)
            loss = (losses * other.tokens["weights"][valid]).sum()
        return torch.autograd.grad(loss, weight)[0]

    assert relative_error([gradient(True)], [gradient(False)]) < 1e-5


def torch_statistics(head):
    log_p = torch.log_softmax(head.hidden @ head.weight.t(), -1)
    return log_p.gather(1, head.targets.clamp(min=0)[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


@pytest.mark.parametrize("function", [*LOSSES, "statistics"])
def test_repeatable(function):
    head = Head(dtype=torch.bfloat16)
    first, second = (gradients_of(head, loss_of(head, function)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("function", [*LOSSES, "statistics"])
def test_inputs_are_left_alone(function):
    head = Head()
    before = [x.detach().clone() for x in head.leaves]
    loss_of(head, function, temperature=0.5).backward()
    assert all(torch.equal(a, b) for a, b in zip(before, head.leaves, strict=True))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # which dynamo looks at, of what it hands over
@pytest.mark.parametrize("function", [*LOSSES, "statistics"])
def test_compiled(function):
    head = Head()
    advantages, mode, weights = (head.tokens[name] for name in ("advantages", "mode", "weights"))

    def run(hidden, weight, bias):
        arguments, options = (2 * hidden, weight, head.targets), {"bias": bias, "mask": head.mask}
        if function == "dual_mode":
            return linear_dual_mode_loss(*arguments, advantages=advantages, mode=mode, **options).loss.sin()
        if function == "token_loss":
            return linear_token_loss(*arguments, lambda l, e, i: l * advantages[i] - e, **options).loss.sin()
        return (sum(linear_logprobs_and_entropy(*arguments, **options)) * weights).sum()

    right = gradients_of(head, run(*head.leaves))
    assert relative_error(gradients_of(head, torch.compile(run, backend="aot_eager")(*head.leaves)), right) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_every_backend(backend, dtype, monkeypatch):
    """Everything at once: chunks, parts of a widened weight, masked tokens, options, upstream, a second backward."""
    monkeypatch.setattr("policy_split_kernels.lm_head.products.PART_BYTES", 10 * 8 * 4)
    head, tolerance = Head(dtype=dtype), {torch.float64: 1e-6, torch.bfloat16: 2**-8}[dtype]
    keep = torch.rand(23, 57, generator=torch.Generator().manual_seed(9)) > 0.2
    options = {"keep_mask": keep.scatter(1, head.targets.clamp(min=0)[:, None], True)}
    options |= {"temperature": torch.linspace(0.6, 1.5, 23), "softcap": 3.0, "logit_scale": 2.0}
    loss, vectors = head.truth(**options)
    right = torch.autograd.grad(loss, head.exact, retain_graph=True)
    for function in LOSSES:
        ours = loss_of(head, function, **options)
        assert ours.item() == pytest.approx(loss.item(), rel=1e-5)
        for upstream in (3.0, -2.0):
            gradients = gradients_of(head, upstream * ours, retain_graph=True)
            assert relative_error([x / upstream for x in gradients], right) < tolerance
    right = torch.autograd.grad((vectors[0] + vectors[1]).sum(), head.exact)
    assert relative_error(gradients_of(head, loss_of(head, "statistics", **options)), right) < tolerance


class TestLossFunction:
    def test_may_ignore_what_it_is_given(self):
        head = Head()
        assert not any(g.any() for g in gradients_of(head, head.token_loss(lambda l, e, i: torch.ones_like(l)).loss))
        only_entropy = head.token_loss(lambda l, e, i: -e, weights=None)
        _, entropy = head.statistics()
        torch.testing.assert_close(only_entropy.loss, -entropy.sum() / head.valid.sum())

    def test_may_return_what_it_is_given(self):
        head = Head()
        out = head.token_loss(lambda l, e, i: l)
        torch.testing.assert_close(out.losses, out.logprobs * head.tokens["weights"])

    def test_works_without_gradients(self):
        head = Head()
        with torch.no_grad():
            assert not head.token_loss(head.policy_loss).loss.requires_grad

    @pytest.mark.parametrize(
        ("loss_fn", "error", "says"),
        [
            (None, TypeError, "must be a function"),
            (lambda l, e, i: 1.0, TypeError, "must return a tensor"),
            (lambda l, e, i: l.sum(), ValueError, "one loss for each of the"),
            (lambda l, e, i: l[:, None], ValueError, "one loss for each of the"),
        ],
    )
    def test_that_is_wrong(self, loss_fn, error, says):
        with pytest.raises(error, match=says):
            Head().token_loss(loss_fn)

    @pytest.mark.parametrize("by", ["leaf", "computed", "itself"])
    def test_whose_other_gradient_would_be_lost(self, by):
        temperature = torch.ones((), requires_grad=True)
        losses = {
            "leaf": lambda l, e, i: -l * temperature,
            "computed": lambda l, e, i: -l + temperature.exp() * e,
            "itself": lambda l, e, i: torch.zeros_like(l).requires_grad_(),
        }
        with pytest.raises(ValueError, match="requires grad, which it would never get"):
            Head().token_loss(losses[by])

    def test_that_raises(self):
        def loss_fn(logprobs, entropy, index):
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            Head().token_loss(loss_fn)
