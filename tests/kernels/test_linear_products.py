"""The LM head: how many products a call makes, of which layout and dtype, and what of the tokens is not read."""

import gc

import formulas
import linear_cases
import pytest
import torch
from linear_cases import Head, relative_error
from torch.utils._python_dispatch import TorchDispatchMode

from policy_split import linear_logprobs_and_entropy

SEVEN_TOKENS = 7 * 64 * 4  # bytes of a chunk; the buffer's rows are padded to 64 float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hidden_of_any_layout(dtype):
    whole = torch.randn(2, 3, 9, 8, dtype=dtype)
    weight = torch.randn(57, 8, dtype=dtype)
    hidden = whole.transpose(1, 2)[:, 1:].requires_grad_()
    targets = torch.randint(57, (2, 8, 3))
    logprobs, entropy = linear_logprobs_and_entropy(hidden, weight, targets)
    assert logprobs.shape == entropy.shape == (2, 8, 3)
    (gradient,) = torch.autograd.grad((logprobs + entropy).sum(), hidden)
    flat = hidden.detach().reshape(-1, 8).requires_grad_()
    right, _ = linear_logprobs_and_entropy(flat, weight, targets.flatten())
    assert torch.equal(right.view(2, 8, 3), logprobs)
    assert gradient.shape == hidden.shape
    one, _ = linear_logprobs_and_entropy(flat[0], weight, targets[0, 0, 0])
    assert one.shape == ()


@pytest.mark.parametrize("transposed", [True, False])
def test_weight_of_any_layout(transposed):
    """GPT-2's Conv1D holds (D, V); a slice of a larger matrix has other strides."""
    head = Head(bias=False, dtype=torch.float64)
    loss, _ = head.truth()
    right = torch.autograd.grad(loss, head.exact)
    weight = head.weight.detach()
    strided = weight.t().contiguous().t() if transposed else torch.cat((weight, weight), 1)[:, :8]
    head.weight = strided.requires_grad_()
    assert relative_error(torch.autograd.grad(head.dual_mode().loss, head.leaves), right) < 1e-12


@pytest.mark.parametrize("logits_dtype", [None, torch.float32, torch.bfloat16])
def test_logits_dtype(logits_dtype, on_gpu_path):
    head = Head(tokens=60, vocabulary=300, dim=32, dtype=torch.bfloat16)
    exact, _ = head.truth()[1][:2]
    logprobs, _ = head.statistics(logits_dtype=logits_dtype)
    error = (logprobs - exact).abs().max().item()
    rounded = logits_dtype == torch.bfloat16 or (logits_dtype is None and on_gpu_path)
    assert (error > 1e-3) == rounded
    assert error < 0.1


@pytest.fixture(params=[False, True])
def on_gpu_path(request, monkeypatch):
    """As on a GPU: 16-bit logits and products; the sums in float32 by widened factors, for want of its GEMM here."""
    if request.param:
        monkeypatch.setattr("policy_split_kernels.lm_head.products.widens", lambda device: False)
        monkeypatch.setattr("policy_split_kernels.lm_head.chunks.GPU_TOKENS", 4)
    return request.param


@pytest.mark.parametrize("chunks", [1, 4, 64])
def test_precision_of_16_bit_gradients(chunks, on_gpu_path):
    """At most twice the error of an eager bfloat16 loss with float32 logits, however many chunks there are."""
    tokens, vocabulary = 256, 500
    head = Head(tokens=tokens, vocabulary=vocabulary, dim=48, dtype=torch.bfloat16, bias=False, masked=False)
    loss, _ = head.truth()
    right = torch.autograd.grad(loss, head.exact)
    logits = (head.hidden @ head.weight.t()).float()
    coefficients = {"entropy_coef": linear_cases.ENTROPY_COEF, "kl_coef": linear_cases.KL_COEF}
    eager = formulas.loss(logits, head.targets, dtype=torch.float32, **head.tokens | coefficients)[0].sum()
    eager_gradients = torch.autograd.grad(eager, head.leaves)
    row_bytes = 512 * (2 if on_gpu_path else 4)
    gradients = torch.autograd.grad(head.dual_mode(chunk_bytes=tokens // chunks * row_bytes).loss, head.leaves)
    for ours, theirs, exact in zip(gradients, eager_gradients, right, strict=True):
        assert relative_error([ours], [exact]) < 2 * relative_error([theirs], [exact])
    one = torch.autograd.grad(head.dual_mode().loss, head.leaves)
    assert relative_error(gradients, right) < 1.1 * relative_error(one, right)


class Products(TorchDispatchMode):
    """Counts the rows of each matrix product."""

    def __init__(self):
        super().__init__()
        self.tokens = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm", "addmm_"):
            self.tokens.append((*args[-2].shape, *args[-1].shape))
        return func(*args, **kwargs or {})


@pytest.mark.parametrize(
    ("frozen", "expected"), [((), 3), (("hidden",), 2), (("weight",), 2), (("hidden", "weight"), 1), (("bias",), 3)]
)
@pytest.mark.parametrize("function", ["dual_mode", "token_loss", "statistics"])
def test_number_of_products(function, frozen, expected):
    head = Head(vocabulary=57, dim=8, tokens=23)
    for name in frozen:
        getattr(head, name).requires_grad_(False)
    arguments = (head.policy_loss,) if function == "token_loss" else ()
    with Products() as products:
        out = getattr(head, function)(*arguments)
        loss = out.logprobs.sum() if function == "statistics" else out.loss
        loss.backward()
    assert len(products.tokens) == expected + (function == "statistics")  # the logits again
    count = int(head.valid.sum())
    assert count < 23
    assert all(count in shape for shape in products.tokens)  # masked tokens are in no product
    for name in ("hidden", "weight", "bias"):
        assert (getattr(head, name).grad is None) == (name in frozen)


def test_one_product_without_gradients():
    head = Head()
    with Products() as products, torch.no_grad():
        head.dual_mode()
    assert len(products.tokens) == 1
    with Products() as products, torch.no_grad():
        head.statistics()
    assert len(products.tokens) == 1


def test_tokens_that_do_not_count_are_not_read():
    head = Head(dtype=torch.float64)
    loss, _ = head.truth()
    right = torch.autograd.grad(loss, head.exact)
    with torch.no_grad():
        head.hidden[~head.valid] = torch.nan
    for x in head.tokens.values():
        if x.is_floating_point():
            x[~head.valid] = torch.nan
    for run in (head.dual_mode, lambda: head.token_loss(head.policy_loss)):
        out = run()
        assert out.loss.item() == pytest.approx(loss.item())
        gradients = torch.autograd.grad(out.loss, head.leaves)
        assert relative_error(gradients, right) < 1e-12
        assert not gradients[0][~head.valid].any()
        assert not out.logprobs[~head.valid].any()
        assert not out.entropy[~head.valid].any()


@pytest.mark.parametrize("tokens", [0, 5])
def test_nothing_counts(tokens):
    head = Head(tokens=tokens, masked=False)
    head.mask = torch.zeros(tokens, dtype=torch.bool)
    for loss in (head.dual_mode().loss, head.token_loss(head.policy_loss).loss, sum(head.statistics()).sum()):
        assert loss.item() == 0
        for gradient, leaf in zip(torch.autograd.grad(loss, head.leaves), head.leaves, strict=True):
            assert gradient.shape == leaf.shape
            assert not gradient.any()


def test_minus_inf_and_nan():
    head = Head(dtype=torch.float64, masked=False)
    with torch.no_grad():
        head.bias[::3] = -torch.inf  # a vocabulary of which a part cannot be drawn
    head.targets[:] = 1
    loss, _ = head.truth()
    out = head.dual_mode(chunk_bytes=SEVEN_TOKENS)
    assert out.loss.item() == pytest.approx(loss.item())
    gradients = torch.autograd.grad(out.loss, head.leaves)
    assert all(g.isfinite().all() for g in gradients)
    assert not gradients[1][::3].any()
    with torch.no_grad():
        head.hidden[4] = torch.nan
    out = head.dual_mode()
    assert out.logprobs.isnan().nonzero()[:, 0].tolist() == [4]
    assert out.loss.isnan()


def test_one_dtype_of_everything_under_autocast():
    """Parameters of float32, products of bfloat16: gradients come back in float32 without a rounding to bfloat16."""
    head = Head(tokens=40, vocabulary=200, dim=32)
    with torch.autocast("cpu", torch.bfloat16):
        out = head.dual_mode()
    out.loss.backward()
    rounded = Head(tokens=40, vocabulary=200, dim=32, dtype=torch.bfloat16)
    for name in ("advantages", "old_logprobs", "ref_logprobs"):
        assert torch.equal(rounded.tokens[name], head.tokens[name])
    rounded.dual_mode().loss.backward()
    for leaf, other in zip(head.leaves, rounded.leaves, strict=True):
        assert leaf.grad.dtype == torch.float32
        assert torch.equal(leaf.grad.bfloat16(), other.grad)
        assert not torch.equal(leaf.grad, other.grad.float())


def test_the_weight_in_autocasts_dtype_is_not_kept_for_backward(monkeypatch):
    monkeypatch.setattr("policy_split_kernels.lm_head.products.widens", lambda device: False)
    head = Head(vocabulary=211, dim=13)
    with torch.autocast("cpu", torch.bfloat16):
        loss = head.dual_mode().loss
    shapes = [x.shape for x in gc.get_objects() if type(x) is torch.Tensor and x.dtype == torch.bfloat16]
    assert head.weight.shape not in shapes
    loss.backward()
    assert head.weight.grad.dtype == torch.float32
