"""The operations as PyTorch sees them: opcheck, fakes, torch.compile, gradcheck, the choice of backend."""

import importlib
import inspect
import itertools

import pytest
import torch

import policy_split
from policy_split import dual_mode_loss, logprobs_and_entropy, mode_divergence
from policy_split_kernels import backends, ops
from policy_split_kernels.cpu import library as native_library
from policy_split_kernels.cpu import logits as native
from policy_split_kernels.reference import logits as reference

N, V = 6, 11
CELLS = {
    "logits": ("logprobs_entropy", "logprobs_entropy_gradient", "dual_mode_loss", "scale_rows_"),
    "divergence": ("divergence", "divergence_gradient", "jensen_shannon", "jensen_shannon_gradient"),
}


def arguments(dtype, device, with_optional=True):
    generator = torch.Generator().manual_seed(0)
    statistics = torch.float64 if dtype == torch.float64 else torch.float32

    def vector():
        return torch.randn(N, generator=generator).to(device, statistics)

    logits = torch.randn(2, 3, V, generator=generator).to(device, dtype)
    targets = torch.randint(V, (N,), generator=generator).to(device)
    mask = torch.tensor([1, 1, 0, 1, 1, 1], dtype=torch.bool, device=device) if with_optional else None
    keep = (torch.rand(2, 3, V, generator=generator) > 0.2).to(device) if with_optional else None
    if with_optional:  # a target at -inf has a NaN for a KL, which opcheck takes for a difference
        keep.view(N, V)[torch.arange(N), targets] = True
    options = (2.5 if with_optional else None, keep)
    common = (logits, targets, torch.tensor([0.8], device=device, dtype=statistics), mask, *options)
    optional = (vector(), vector(), vector()) if with_optional else (None, None, None)
    delta = 3.0 if with_optional else None
    loss = (vector(), *optional, vector(), vector(), vector(), "clip", 0.2, 0.3, delta, 2.0)
    loss += ([1.0, 1.05], with_optional, delta)
    gradient = (*(vector() for _ in range(5)), vector() if with_optional else None)
    return common, gradient, loss


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of the copies that opcheck hands over (PyTorch 2.14)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("with_optional", [False, True])
def test_opcheck(device, dtype, with_optional):
    common, gradient, loss = arguments(dtype, device, with_optional)
    torch.library.opcheck(ops.logprobs_entropy, (common[0].clone().requires_grad_(), *common[1:]))
    torch.library.opcheck(ops.logprobs_entropy_gradient, (*common, *gradient))
    torch.library.opcheck(ops.logprobs_entropy_gradient_, (*common, *gradient))
    torch.library.opcheck(ops.dual_mode_loss, (*common, *loss))
    torch.library.opcheck(ops.dual_mode_loss_with_gradient, (*common, *loss))
    torch.library.opcheck(ops.dual_mode_loss_with_gradient_, (*common, *loss))
    torch.library.opcheck(ops.scale_rows_, (common[0], gradient[0]))
    pair = tuple(common[0].flip(k).requires_grad_() for k in (1, 2))
    torch.library.opcheck(ops.divergence, (*pair, *common[2:4]))
    vectors = (*gradient[:5], *gradient[:5], *gradient[:2])
    for wants in ((True, True), (True, False)):
        torch.library.opcheck(ops.divergence_gradient, (*(x.detach() for x in pair), *common[2:4], *vectors, *wants))
    torch.library.opcheck(ops.jensen_shannon, (*pair, *common[2:4], 0.3))
    for wants in ((True, True), (False, True)):
        arguments_of_pair = (*(x.detach() for x in pair), *common[2:4], 0.3, *vectors[:7], *wants)
        torch.library.opcheck(ops.jensen_shannon_gradient, arguments_of_pair)


def test_gradcheck(backend, device):
    fast = backend == "triton"  # its interpreter takes a minute for every element by itself
    logits = torch.randn(2, 3, V, dtype=torch.float64, device=device, requires_grad=True)
    targets = torch.randint(V, (2, 3), device=device)
    tokens = {
        "advantages": torch.tensor([[1.0, -1.0, 0.5], [2.0, -0.3, 0.0]], device=device),
        "mode": torch.tensor([[0, 1, 0], [1, 0, 1]], device=device),
        "ref_logprobs": torch.full((2, 3), -2.4, device=device),
        "mask": torch.tensor([[1, 1, 1], [1, 0, 1]], device=device),
        "entropy_coef": (0.1, 0.3),
        "kl_coef": (0.2, 0.1),
        "temperature": 0.7,
    }
    torch.autograd.gradcheck(lambda z: logprobs_and_entropy(z, targets, mask=tokens["mask"]), (logits,), fast_mode=fast)
    old = logprobs_and_entropy(logits.detach(), targets, temperature=0.7).logprobs
    old += torch.tensor([[0.1, -0.1, 0.5], [-0.5, 0.6, -0.6]], device=device)  # ratios inside and outside the clip
    torch.autograd.gradcheck(
        lambda z: dual_mode_loss(z, targets, **tokens, old_logprobs=old).loss, (logits,), fast_mode=fast
    )


def test_gradcheck_of_the_divergence(backend, device):
    pair = [torch.randn(2, 2, 5, dtype=torch.float64, device=device, requires_grad=True) for _ in range(2)]
    options = {"temperature": torch.tensor([[0.7, 1.0], [1.5, 2.0]], device=device)}
    options["mask"] = options["temperature"] != 1.0
    torch.autograd.gradcheck(lambda a, b: mode_divergence(a, b, **options), pair, fast_mode=backend == "triton")


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("backend", ["torch", "native"], indirect=True)
def test_compile_fullgraph(device, inplace):
    """The compiled function, forward and backward, gives the same numbers as the plain one."""
    torch._dynamo.reset()
    weight = torch.randn(V, 5, device=device, requires_grad=True)
    hidden = torch.randn(2, 3, 5, device=device)
    targets = torch.randint(V, (2, 3), device=device)

    def step(weight):
        logits = hidden @ weight.T
        logprobs, entropy = logprobs_and_entropy(logits.detach(), targets)
        out = dual_mode_loss(
            logits, targets, advantages=entropy, mode=targets % 2, old_logprobs=logprobs - 0.05,
            entropy_coef=(0.1, 0.2), inplace_gradient=inplace,
        )  # fmt: skip
        return out.loss * 3

    expected = step(weight)
    (true_gradient,) = torch.autograd.grad(expected, weight)
    actual = torch.compile(step, fullgraph=True)(weight)
    (gradient,) = torch.autograd.grad(actual, weight)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(gradient, true_gradient)


@pytest.mark.parametrize("backend", ["torch", "native"], indirect=True)
def test_compile_fullgraph_of_the_divergence(device):
    torch._dynamo.reset()
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]], device=device)

    def step(a, b):
        out = mode_divergence(a * 2, b, temperature=0.7, mask=mask)
        return (out.kl_ab - 2 * out.kl_ba + 3 * out.entropy_a).sum()

    pair = [torch.randn(2, 3, V, device=device, requires_grad=True) for _ in range(2)]
    expected, actual = step(*pair), torch.compile(step, fullgraph=True)(*pair)
    torch.testing.assert_close(actual, expected)
    for x, y in zip(torch.autograd.grad(actual, pair), torch.autograd.grad(expected, pair), strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("backend", ["native"], indirect=True)
def test_the_divergence_and_the_options_compile_once_for_every_length(device):
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()

    @torch.compile(fullgraph=True, backend=counter, dynamic=True)
    def step(a, b, targets, temperature):
        statistics = logprobs_and_entropy(a, targets, softcap=5.0, keep_mask=b > -1, temperature=temperature)
        return mode_divergence(a, b, temperature=temperature).kl_ab + statistics.logprobs

    for rows, temperature in ((3, 0.5), (5, 0.8), (9, 1.5)):
        a, b = torch.randn(2, 2, rows, V, device=device)
        step(a, b, torch.zeros(2, rows, dtype=torch.long, device=device), torch.tensor(temperature))
    assert counter.frame_count == 1


@pytest.mark.parametrize("backend", ["native"], indirect=True)
def test_compile_does_not_again_for_another_length_temperature_or_coefficient(device):
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()

    @torch.compile(fullgraph=True, backend=counter, dynamic=True)
    def step(logits, targets, temperature):
        return logprobs_and_entropy(logits, targets, temperature=temperature).entropy

    for rows, temperature in itertools.product((3, 5, 9), (0.5, 0.8, 1.5)):
        step(torch.randn(2, rows, V), torch.zeros(2, rows, dtype=torch.long), torch.tensor(temperature))
    assert counter.frame_count == 1


def test_fakes_have_the_shapes_dtypes_and_strides_of_the_real_ones(device):
    from torch._subclasses.fake_tensor import FakeTensorMode

    common, _, loss = arguments(torch.bfloat16, device)
    real = ops.dual_mode_loss_with_gradient(*common, *loss)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = ops.dual_mode_loss_with_gradient(*common, *loss)
    assert [(x.shape, x.dtype, x.stride()) for x in fake] == [(x.shape, x.dtype, x.stride()) for x in real]
    sides = (common[0].transpose(0, 1), common[0].transpose(0, 1) * 2, *common[2:3], None)
    real = (
        *ops.divergence(*sides),
        *ops.divergence_gradient(*sides, *(common[2].expand(N) for _ in range(12)), True, False),
    )
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = (
            *ops.divergence(*sides),
            *ops.divergence_gradient(*sides, *(common[2].expand(N) for _ in range(12)), True, False),
        )
    assert [(x.shape, x.dtype, x.stride()) for x in fake] == [(x.shape, x.dtype, x.stride()) for x in real]


@pytest.mark.parametrize("family", CELLS)
def test_backends_offer_the_same_operations_with_the_same_arguments(family):
    def cells(backend):
        module = importlib.import_module(f"policy_split_kernels.{backends.COLUMNS[backend]}.{family}")
        return {name: inspect.signature(getattr(module, name)).parameters for name in CELLS[family]}

    expected = {name: list(parameters) for name, parameters in cells("torch").items()}
    for backend in ("native", "triton"):
        assert {name: list(parameters) for name, parameters in cells(backend).items()} == expected, backend


def test_choice_of_backend(monkeypatch):
    monkeypatch.setattr(backends, "_chosen", None)
    monkeypatch.delenv("POLICY_SPLIT_BACKEND", raising=False)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert policy_split.get_backend() == "auto"
    assert backends.cells(cpu) is native
    assert backends.cells(gpu).__name__.endswith("gpu.logits")
    assert backends.cells(torch.device("meta")) is reference
    monkeypatch.setenv("POLICY_SPLIT_BACKEND", "torch")
    assert backends.cells(cpu) is reference
    policy_split.set_backend("native")
    assert backends.cells(cpu) is native
    with pytest.raises(ValueError, match="'native' computes on CPU tensors"):
        backends.cells(gpu)


def test_unknown_backends_are_refused(monkeypatch):
    monkeypatch.setattr(backends, "_chosen", None)
    with pytest.raises(ValueError, match="unknown backend 'cuda'; expected one of 'auto', 'torch', 'native', 'triton'"):
        policy_split.set_backend("cuda")
    monkeypatch.setenv("POLICY_SPLIT_BACKEND", "fast")
    with pytest.raises(ValueError, match="POLICY_SPLIT_BACKEND: unknown backend 'fast'"):
        logprobs_and_entropy(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long))


def test_triton_refuses_cpu_tensors_that_nothing_computes(monkeypatch):
    monkeypatch.setattr(backends, "_chosen", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="'triton' computes on CUDA and ROCm tensors, these are on cpu"):
        logprobs_and_entropy(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long))
    monkeypatch.setenv("POLICY_SPLIT_TRITON_ON_CPU", "1")  # something stands in for Triton's launcher, here the same
    assert backends.cells(torch.device("cpu")).__name__ == "policy_split_kernels.gpu.logits"


def test_a_missing_library_is_said_once_and_torch_serves(monkeypatch):
    monkeypatch.setattr(backends, "_chosen", "auto")
    monkeypatch.setattr(native_library, "opened", lambda: None)
    with pytest.warns(RuntimeWarning, match="plain PyTorch serves, many times slower"):
        assert backends.cells(torch.device("cpu")) is reference
    monkeypatch.setattr(backends, "_chosen", "native")
    with pytest.raises(RuntimeError, match="reinstall with pip install"):
        backends.cells(torch.device("cpu"))
