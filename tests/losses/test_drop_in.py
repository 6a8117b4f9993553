"""Names of other libraries: their signatures, their values where they are right, and the truth everywhere."""

import inspect

import pytest
import torch
import truth

from policy_split.drop_in import trl as our_trl
from policy_split.drop_in import verl as our_verl

SIGNATURES = {
    our_trl.selective_log_softmax_and_entropy: {
        "logits": inspect.Parameter.empty,
        "index": inspect.Parameter.empty,
        "entropy_requires_grad": True,
        "temperature": 1.0,
        "row_mask": None,
    },
    our_trl.selective_log_softmax: {
        "logits": inspect.Parameter.empty,
        "index": inspect.Parameter.empty,
        "temperature": 1.0,
        "row_mask": None,
    },
    our_trl.entropy_from_logits: {"logits": inspect.Parameter.empty, "chunk_size": 128},
    our_verl.logprobs_from_logits: {
        "logits": inspect.Parameter.empty,
        "labels": inspect.Parameter.empty,
        "inplace_backward": True,
    },
    our_verl.entropy_from_logits: {"logits": inspect.Parameter.empty},
}
SHAPES = [(7, 2053), (2, 4, 131)]  # odd vocabularies: no tile ends where they do
DTYPES = [torch.float32, torch.bfloat16]


def signature(function):
    return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}


def inputs(shape, dtype=torch.float32, seed=0, several=None):
    """Logits as models give them, of which a slice is scored, with indices (...) or (..., several)."""
    generator = torch.Generator().manual_seed(seed)
    whole = (*shape[:-2], shape[-2] + 1, shape[-1])
    logits = (torch.randn(whole, generator=generator) * 3).to(dtype).requires_grad_()
    index = shape[:-1] if several is None else (*shape[:-1], several)
    return logits, torch.randint(shape[-1], index, generator=generator)


def upstream(like, seed=5):
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed)).to(like.dtype)


def gradient(outputs, leaf):
    return torch.autograd.grad(list(outputs), leaf, [upstream(x, seed) for seed, x in enumerate(outputs)])[0]


def true_values(logits, index, temperature=1.0):
    """(log-probs, entropy, leaf) in float64 of logits[..., :-1, :] for an index of any number of tokens."""
    leaf = logits.detach().double().requires_grad_()
    log_p = torch.log_softmax(leaf[..., :-1, :] / temperature, -1)
    several = index if index.dim() == leaf.dim() else index[..., None]
    logprobs = log_p.gather(-1, several).view(index.shape)
    finite = torch.where(log_p == -torch.inf, 0.0, log_p)
    return logprobs, -(log_p.exp() * finite).sum(-1), leaf


def assert_close(actual, expected, dtype):
    truth.assert_gradient_close(actual, expected, dtype)


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda f: f"{f.__module__.split('.')[-1]}-{f.__name__}")
def test_signature(function):
    assert signature(function) == SIGNATURES[function]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_selective_log_softmax_and_entropy_is_true(backend, shape, dtype, temperature):
    logits, index = inputs(shape, dtype)
    outputs = our_trl.selective_log_softmax_and_entropy(logits[..., :-1, :], index, temperature=temperature)
    *expected, leaf = true_values(logits, index, temperature)
    for ours, theirs in zip(outputs, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=1e-6)
    assert_close(gradient(outputs, logits), gradient(expected, leaf), dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("several", [None, 1, 5])
def test_selective_log_softmax_of_several_tokens_is_true(backend, shape, dtype, several):
    logits, index = inputs(shape, dtype, several=several)
    if several == 5:
        index[..., 3] = index[..., 0]  # named twice: its gradient is the sum of both
    (ours,) = outputs = (our_trl.selective_log_softmax(logits[..., :-1, :], index, 0.7),)
    expected, _, leaf = true_values(logits, index, 0.7)
    assert ours.shape == index.shape
    assert ours.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(ours.double(), expected, atol=1e-5, rtol=1e-6)
    assert_close(gradient(outputs, logits), gradient((expected,), leaf), dtype)


@pytest.mark.parametrize("function", [our_trl.entropy_from_logits, our_verl.entropy_from_logits])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_entropy_from_logits_is_true(backend, function, shape, dtype):
    logits, index = inputs(shape, dtype)
    outputs = (function(logits[..., :-1, :]),)
    _, expected, leaf = true_values(logits, index)
    torch.testing.assert_close(outputs[0].double(), expected, atol=1e-5, rtol=1e-6)
    assert_close(gradient(outputs, logits), gradient((expected,), leaf), dtype)


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_logprobs_from_logits_is_true(backend, shape, dtype, inplace):
    leaf, labels = inputs(shape, dtype)
    computed = leaf * 1
    outputs = (our_verl.logprobs_from_logits(computed[..., :-1, :], labels, inplace),)
    expected, _, exact = true_values(leaf, labels)
    torch.testing.assert_close(outputs[0].double(), expected, atol=1e-5, rtol=1e-6)
    actual = gradient(outputs, leaf)
    assert_close(actual, gradient((expected,), exact), dtype)
    assert torch.equal(computed, leaf) != inplace
    if inplace:
        assert torch.equal(computed[..., :-1, :], actual[..., :-1, :])


def test_inplace_backward_leaves_leaves_and_their_slices_alone():
    logits, labels = inputs((3, 17))
    before = logits.detach().clone()
    for x, index in ((logits[:-1], labels), (logits, torch.tensor([1, 2, 3, 4]))):
        our_verl.logprobs_from_logits(x, index).sum().backward()
        assert torch.equal(logits, before)


def test_inplace_backward_says_so_where_the_entropy_needs_the_logits():
    leaf, labels = inputs((3, 17))
    computed = leaf[:-1] * 1
    total = our_verl.entropy_from_logits(computed).sum() + our_verl.logprobs_from_logits(computed, labels).sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


@pytest.mark.parametrize("several", [None, 3])
def test_rows_that_are_masked_are_0_and_not_read(several):
    logits, index = inputs((6, 17), several=several)
    with torch.no_grad():
        logits[1] = torch.nan
    mask = torch.ones(index.shape, dtype=torch.bool)
    mask[1] = False
    if several:
        mask[3, 1] = False
        index[5, 2] = -100
    (ours,) = outputs = (our_trl.selective_log_softmax(logits[:-1], index, row_mask=mask),)
    valid = mask & (index != -100)
    clean = logits.detach().nan_to_num()
    expected, _, leaf = true_values(clean, torch.where(valid, index, 0))
    expected = torch.where(valid, expected, 0.0)
    torch.testing.assert_close(ours.double(), expected, atol=1e-5, rtol=1e-6)
    assert (ours[~valid] == 0).all()
    assert_close(gradient(outputs, logits), gradient((expected,), leaf), torch.float32)


@pytest.mark.parametrize("several", [None, 2])
def test_logits_of_minus_infinity(several):
    """Where the originals give NaN: tokens that cannot be drawn, among them one that is asked for."""
    logits, index = inputs((4, 17), several=several)
    with torch.no_grad():
        logits[:, ::3] = -torch.inf
    index[:] = 1
    index[2] = 3
    outputs = (our_trl.selective_log_softmax(logits[:-1], index), our_trl.entropy_from_logits(logits[:-1]))
    expected, entropy, leaf = true_values(logits, index)
    assert (outputs[0][2] == -torch.inf).all()
    torch.testing.assert_close(outputs[0].double(), expected, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(outputs[1].double(), entropy, atol=1e-5, rtol=1e-6)
    p = torch.softmax(leaf.detach(), -1)[:-1]
    log_p = torch.where(p > 0, p.log(), 0.0)
    up = upstream(outputs[0], 0).double().reshape(4, -1)
    one_hot = torch.nn.functional.one_hot(index.reshape(4, -1), 17).double()
    exact = ((one_hot - p[:, None]) * up[..., None]).sum(1)
    exact = exact - upstream(entropy, 1)[:, None] * p * (log_p + entropy[:, None])
    torch.testing.assert_close(gradient(outputs, logits)[:-1].double(), exact, atol=1e-5, rtol=1e-5)


def test_entropy_without_gradient():
    logits, index = inputs((3, 17))
    logprobs, entropy = our_trl.selective_log_softmax_and_entropy(logits[:-1], index, False)
    assert logprobs.requires_grad
    assert not entropy.requires_grad


def test_a_temperature_in_the_place_of_trl_kernels_raises():
    logits, index = inputs((3, 17))
    with pytest.raises(TypeError, match="pass temperature by name"):
        our_trl.selective_log_softmax_and_entropy(logits[:-1], index, 0.7)


def test_an_index_of_another_shape_raises():
    logits, index = inputs((2, 4, 17), several=3)
    with pytest.raises(ValueError, match=r"index has shape \(2, 3, 3\); expected \(2, 4\) or \(2, 4, 'K'\)"):
        our_trl.selective_log_softmax(logits[:, :-1], index[:, 1:])


def test_no_rows():
    logits, index = inputs((1, 17), several=3)
    ours = our_trl.selective_log_softmax(logits[:0], index[:0])
    assert ours.shape == (0, 3)
    (gradient,) = torch.autograd.grad(ours.sum(), logits)
    assert (gradient == 0).all()


@pytest.fixture
def trl():
    return pytest.importorskip("trl.trainer.utils", reason="trl is not installed", exc_type=ImportError)


@pytest.fixture
def verl(monkeypatch):
    monkeypatch.setenv("VERL_DISABLE_FLASH_ATTN_CE", "1")  # which knows no CPU
    return pytest.importorskip("verl.utils.torch_functional", reason="verl is not installed", exc_type=ImportError)


@pytest.mark.parametrize("module", [our_trl, our_verl], ids=["trl", "verl"])
def test_signatures_are_the_originals(module, request):
    theirs = request.getfixturevalue(module.__name__.split(".")[-1])
    names = [function.__name__ for function in SIGNATURES if function.__module__ == module.__name__]
    for name in names:
        assert signature(getattr(module, name)) == signature(getattr(theirs, name)), name


def assert_like_the_original(ours, theirs, arguments, dtype, slack):
    """Values and gradients; the originals, whose CPU paths compute in the dtype of the logits, to its rounding."""
    results = []
    for function in (ours, theirs):
        logits, *rest = arguments()
        out = function(logits[..., :-1, :], *rest)
        out = out if isinstance(out, tuple) else (out,)
        results.append(([x.float() for x in out], gradient([x.float() for x in out], logits)))
    (values, grad), (their_values, their_grad) = results
    for x, y in zip(values, their_values, strict=True):
        assert x.shape == y.shape
        torch.testing.assert_close(x, y, atol=slack, rtol=slack)
    scale = their_grad.float().abs().max()
    torch.testing.assert_close(grad.float() / scale, their_grad.float() / scale, atol=slack, rtol=slack)
    assert grad.dtype == their_grad.dtype == dtype


ROUNDING = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("settings", [(), (True, 0.7), "row_mask"], ids=["default", "temperature", "row_mask"])
def test_like_trl_statistics(trl, shape, dtype, settings):
    if settings == "row_mask":
        settings = (True, 1.0, torch.arange(shape[-2]).expand(shape[:-1]) % 3 != 0)
    names = "selective_log_softmax_and_entropy"
    assert_like_the_original(
        getattr(our_trl, names), getattr(trl, names), lambda: (*inputs(shape, dtype), *settings), dtype, ROUNDING[dtype]
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("several", [None, 4])
@pytest.mark.parametrize("settings", [(), (0.7,)])
def test_like_trl_log_softmax(trl, shape, dtype, several, settings):
    assert_like_the_original(
        our_trl.selective_log_softmax, trl.selective_log_softmax,
        lambda: (*inputs(shape, dtype, several=several), *settings), dtype, ROUNDING[dtype],
    )  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_like_trl_entropy(trl, shape, dtype):
    assert_like_the_original(
        our_trl.entropy_from_logits, trl.entropy_from_logits, lambda: (inputs(shape, dtype)[0], 2), dtype,
        ROUNDING[dtype],
    )  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_like_verl(verl, shape, dtype):
    # verl's entropy in bfloat16 is the difference of two numbers near 10, rounded to a 16th each
    slack = ROUNDING[dtype] if dtype == torch.float32 else 2**-3
    assert_like_the_original(
        our_verl.logprobs_from_logits, verl.logprobs_from_logits, lambda: inputs(shape, dtype), dtype, ROUNDING[dtype]
    )
    assert_like_the_original(
        our_verl.entropy_from_logits, verl.entropy_from_logits, lambda: inputs(shape, dtype)[:1], dtype, slack
    )
