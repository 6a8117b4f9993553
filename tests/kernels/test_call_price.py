"""What a call costs beside its kernel, against eager PyTorch's own; and who may be watching that must see the op."""

import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.logits import call_price
from policy_split import dual_mode_loss, logprobs_and_entropy, mode_divergence

MOST = {"loss with gradient": 1.3, "statistics without gradient": 3.0}  # times eager's; measured 0.9 and 1.8


@pytest.mark.parametrize("kind", MOST)
@pytest.mark.parametrize("backend", ["native"], indirect=True)
def test_a_call_costs_about_what_eager_torch_pays(backend, kind):
    candidate = call_price.runs()[kind]
    for rounds in (100, 400, 1000):  # a machine that is busy gets more of them
        price = call_price.microseconds(candidate, rounds)
        if price["ours"] <= MOST[kind] * price["eager"]:
            break
    assert price["ours"] <= MOST[kind] * price["eager"], price


LOGITS, TARGETS = torch.linspace(-1, 1, 10).view(2, 5), torch.tensor([1, 4])


def statistics(logits=LOGITS, targets=TARGETS):
    return logprobs_and_entropy(logits, targets).logprobs


def loss(logits=LOGITS, targets=TARGETS):
    numbers = targets * 1.0
    return dual_mode_loss(
        logits, targets, advantages=numbers, mode=targets % 2, weights=numbers, entropy_coef=(0, 1)
    ).loss


def divergence(logits=LOGITS, targets=TARGETS):
    return mode_divergence(logits, logits * targets[:, None]).kl_ab


OPS = {statistics: "logprobs_entropy", loss: "dual_mode_loss", divergence: "divergence"}
every_backend = pytest.mark.parametrize("backend", ["torch", "native"], indirect=True)
every_function = pytest.mark.parametrize("function", OPS, ids=lambda f: f.__name__)


@every_function
@every_backend
def test_the_profiler_sees_the_operation(backend, function):
    with torch.profiler.profile() as profile:
        function()
    assert f"policy_split::{OPS[function]}" in {event.name for event in profile.events()}


@every_function
@every_backend
def test_a_dispatch_mode_sees_the_operation(backend, function):
    seen = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func.name())
            return func(*args, **(kwargs or {}))

    expected = function()
    with Mode():
        assert torch.equal(function(), expected)
    assert f"policy_split::{OPS[function]}" in seen


@every_function
@pytest.mark.parametrize("pre_dispatch", [False, True])
@every_backend
def test_a_traced_graph_holds_the_operation(backend, function, pre_dispatch):
    for mode in ("fake", "real"):
        traced = make_fx(lambda *tensors: function(*tensors), tracing_mode=mode, pre_dispatch=pre_dispatch)(
            LOGITS, TARGETS
        )
        assert f"policy_split.{OPS[function]}.default" in traced.code
        assert torch.equal(traced(LOGITS * 2, TARGETS - 1), function(LOGITS * 2, TARGETS - 1))


@every_backend
def test_a_script_traces_the_operation(backend):
    with warnings.catch_warnings():  # of its deprecation, and of the shapes that it takes for constants
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(statistics, LOGITS)
    assert torch.equal(traced(LOGITS * 2), statistics(LOGITS * 2))


@every_function
@every_backend
def test_fake_tensors_give_fake_results(backend, function):
    function()  # and nothing that it keeps from call to call is in the way
    with FakeTensorMode() as mode:
        fake = function(mode.from_tensor(LOGITS), mode.from_tensor(TARGETS))
    assert fake.shape == function().shape
    assert fake.dtype == torch.float32
    assert torch.equal(function(), function(LOGITS.clone()))  # nor did it keep a fake


@every_backend
def test_what_is_kept_in_inference_mode_serves_a_backward(backend):
    with torch.inference_mode():
        statistics_there = logprobs_and_entropy(LOGITS, TARGETS, temperature=0.77).logprobs
        loss()
    leaf = LOGITS.clone().requires_grad_()
    out = logprobs_and_entropy(leaf, TARGETS, temperature=0.77).logprobs
    assert torch.equal(out, statistics_there)
    torch.autograd.grad(out.sum() + loss(leaf), leaf)


def test_two_copies_of_the_sources_have_namespaces_of_their_own():
    """As the kernels of the Hub beside the package; the suite's own is the first."""
    from policy_split_kernels import ops

    assert ops._LIBRARY.ns == "policy_split"
    second = ops._own_library("policy_split")
    assert second.ns == "policy_split_2"
