"""hidden, weight and bias of different dtypes: computed in what torch promotes them to, gradients in their own."""

import itertools

import pytest
import torch
from linear_cases import Head, relative_error

B16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
ROUNDING = {F64: 1e-12, F32: 3e-6, B16: 2**-8, F16: 2**-10}
MIXED = [
    pair for pair in itertools.product((B16, F16, F32, F64), repeat=2) if pair[0] != pair[1]
]  # of hidden and weight
SEVEN_TOKENS = 7 * 64 * 4
FUNCTIONS = ["dual_mode", "token_loss", "statistics"]


def mixed_head(hidden, weight, bias, **shape):
    head = Head(dtype=F64, bias=bias is not None, **shape)
    head.hidden, head.weight = (
        x.detach().to(dtype).requires_grad_() for x, dtype in ((head.hidden, hidden), (head.weight, weight))
    )
    if bias is not None:
        head.bias = head.bias.detach().to(bias).requires_grad_()
    wide = F64 if F64 in (hidden, weight, bias) else F32
    head.tokens = {name: x.to(wide) if x.is_floating_point() else x for name, x in head.tokens.items()}
    return head


def loss_of(head, function, **options):
    if function == "statistics":
        return (sum(head.statistics(**options)) * head.tokens["weights"]).sum()
    return getattr(head, function)(*([head.policy_loss] if function == "token_loss" else []), **options).loss


def true_gradients(head, function):
    loss, (logprobs, entropy, *_) = head.truth()
    if function == "statistics":
        loss = ((logprobs + entropy) * head.tokens["weights"]).sum()
    return loss, torch.autograd.grad(loss, head.exact)


@pytest.fixture(params=["whole", "parts", "gpu"])
def path(request, monkeypatch):
    """The weight cast at once, or in parts (of a CPU, several of them); or as a GPU does."""
    if request.param == "gpu":
        monkeypatch.setattr("policy_split_kernels.lm_head.products.widens", lambda device: False)
        monkeypatch.setattr("policy_split_kernels.lm_head.chunks.GPU_TOKENS", 4)
    if request.param == "parts":
        monkeypatch.setattr("policy_split_kernels.lm_head.products.PART_BYTES", 10 * 8 * 4)
    return request.param


@pytest.mark.parametrize(("hidden", "weight"), MIXED, ids=str)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_promoted(hidden, weight, function, path):
    """A factor of 16 bits takes part exactly: what is left is float32's error and the rounding of each gradient."""
    head = mixed_head(hidden, weight, None)
    loss, right = true_gradients(head, function)
    promoted = torch.promote_types(hidden, weight)
    ours = loss_of(head, function, chunk_bytes=SEVEN_TOKENS)
    assert ours.dtype == (F64 if promoted == F64 else F32)
    assert ours.item() == pytest.approx(loss.item(), rel=1e-12 if promoted == F64 else 1e-5)
    for leaf, ours_, exact in zip(head.leaves, torch.autograd.grad(2 * ours, head.leaves), right, strict=True):
        assert ours_.dtype == leaf.dtype
        assert relative_error([ours_ / 2], [exact]) < max(ROUNDING[leaf.dtype], ROUNDING[promoted])


@pytest.mark.parametrize("bias", [B16, F16, F32, F64])
@pytest.mark.parametrize("both", [B16, F32])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_bias_of_another_dtype(bias, both, function):
    head = mixed_head(both, both, bias)
    loss, right = true_gradients(head, function)
    ours = loss_of(head, function)
    assert ours.item() == pytest.approx(loss.item(), rel=1e-5)
    gradients = torch.autograd.grad(ours, head.leaves)
    assert [x.dtype for x in gradients] == [both, both, bias]
    for x, exact in zip(gradients, right, strict=True):
        assert relative_error([x], [exact]) < max(ROUNDING[x.dtype], ROUNDING[torch.promote_types(both, bias)], 3e-6)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_second_backward_and_upstream(function):
    head = mixed_head(B16, F32, B16)
    _, right = true_gradients(head, function)
    loss = loss_of(head, function, chunk_bytes=SEVEN_TOKENS)
    for upstream in (1.0, -0.5):
        gradients = torch.autograd.grad(upstream * loss, head.leaves, retain_graph=True)
        for x, exact in zip(gradients, right, strict=True):
            assert relative_error([x / upstream], [exact]) < ROUNDING[x.dtype]


@pytest.mark.parametrize(("hidden", "weight", "bias"), [(B16, F32, F32), (F32, B16, F16), (F16, B16, F32)])
@pytest.mark.parametrize("autocast", [B16, F16])
def test_under_autocast_as_linear(hidden, weight, bias, autocast):
    """The factors are rounded to autocast's dtype, as F.linear's are; each gradient comes back in its tensor's own."""
    head = mixed_head(hidden, weight, bias)
    with torch.autocast("cpu", autocast):
        ours = loss_of(head, "statistics")
        assert torch.nn.functional.linear(head.hidden, head.weight, head.bias).dtype == autocast
    for leaf in (head.hidden, head.weight, head.bias):
        rounded = leaf.detach().to(autocast).to(leaf.dtype)
        leaf.data.copy_(rounded)
    loss, right = true_gradients(head, "statistics")
    assert ours.item() == pytest.approx(loss.item(), rel=1e-5)
    for x, leaf, exact in zip(torch.autograd.grad(ours, head.leaves), head.leaves, right, strict=True):
        assert x.dtype == leaf.dtype
        assert relative_error([x], [exact]) < max(ROUNDING[x.dtype], 1e-5)


@pytest.mark.parametrize(("hidden", "weight"), [(B16, F64), (F64, F32)])
def test_float64_is_left_alone_by_autocast(hidden, weight):
    head = mixed_head(hidden, weight, None)
    with torch.autocast("cpu", torch.bfloat16):
        assert head.statistics().logprobs.dtype == F64


def test_logits_dtype_is_that_of_the_promoted_factors():
    head = mixed_head(B16, F32, None)
    head.statistics(logits_dtype=F32)
    with pytest.raises(ValueError, match=r"logits_dtype must be one of None, torch\.float32 here, got torch\.bfloat16"):
        head.statistics(logits_dtype=B16)
    mixed_head(B16, B16, None).statistics(logits_dtype=F32)


def test_a_weight_that_is_cast_is_not_changed():
    head = mixed_head(F32, B16, None)
    before = head.weight.detach().clone()
    loss_of(head, "dual_mode").backward()
    assert torch.equal(head.weight.detach(), before)
    assert head.weight.grad.dtype == B16
