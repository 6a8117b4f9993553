"""Tensors that their memory does not hold: a negated view, zeros without memory, layouts without strides."""

import pytest
import torch

import policy_split
from policy_split_kernels import ops

TARGETS = torch.tensor([[1, 4, 0], [6, 2, 2]])
LOGITS = (2, 3, 7)


def drawn(shape, seed=0, device="cpu"):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


def negated(x):
    """A view that says x and lies in memory as -x, as the imaginary part of a conjugate does."""
    view = torch._neg_view(-x)
    assert view.is_neg()
    return view


def no_memory(x):
    return torch._efficientzerotensor(x.shape, device=x.device)


def loss(logits, view=torch.clone, **options):
    advantages, logprobs, weights = (drawn((2, 3), seed, logits.device) for seed in (1, 2, 3))
    return policy_split.dual_mode_loss(
        logits, TARGETS.to(logits.device), mode=torch.tensor([[0, 0, 0], [1, 1, 1]], device=logits.device),
        advantages=view(advantages), old_logprobs=view(-logprobs.abs()), ref_logprobs=view(-0.5 * logprobs.abs()),
        weights=view(weights.abs()), entropy_coef=(0.1, 0.3), kl_coef=(0.2, 0.1), **options,
    ).loss  # fmt: skip


def functions(view, device):
    """Each function of logits, its results as a tuple; every argument beside the first through `view`."""
    targets, other = TARGETS.to(device), drawn(LOGITS, 4, device)
    temperature = view(torch.full((2, 3), 2.0, device=device))
    return {
        "statistics": lambda x: policy_split.logprobs_entropy_lse(x, targets, temperature=temperature),
        "divergence": lambda x: policy_split.mode_divergence(x, view(other), temperature=temperature),
        "mixture": lambda x: (policy_split.jensen_shannon_divergence(x, view(other), beta=0.3),),
        "loss": lambda x: (loss(x, view),),
    }


NAMES = list(functions(torch.clone, "cpu"))


@pytest.mark.parametrize("name", NAMES)
def test_negated_arguments_are_what_they_say(backend, device, name):
    logits = drawn(LOGITS, device=device)
    found = []
    for view in (negated, torch.clone):
        x = view(logits).requires_grad_()
        out = functions(view, device)[name](x)
        found.append([*out, torch.autograd.grad(out[0].sum(), x)[0]])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("view", [negated, no_memory])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_from_upstream(backend, device, name, view):
    logits, function = drawn(LOGITS, device=device).requires_grad_(), functions(torch.clone, device)[name]
    given = [view(drawn(each.shape, 5 + k, device)) for k, each in enumerate(function(logits))]
    (got,) = torch.autograd.grad(function(logits), logits, given)
    (expected,) = torch.autograd.grad(
        function(logits), logits, [each + torch.zeros(each.shape, device=device) for each in given]
    )
    torch.testing.assert_close(got, expected)


def test_zeros_without_memory(backend, device):
    zeros = no_memory(drawn(LOGITS, device=device))
    out = policy_split.logprobs_and_entropy(zeros, TARGETS.to(device))
    torch.testing.assert_close(out.entropy, torch.full((2, 3), 7.0, device=device).log())


@pytest.mark.parametrize(("view", "said"), [(negated, "a negated view"), (no_memory, "rows lie apart in memory")])
def test_no_gradient_is_written_over_them(view, said):
    with pytest.raises(ValueError, match=said):
        loss(view(drawn(LOGITS)), inplace_gradient=True)


def test_an_lm_head(backend, device):
    hidden, weight, upstream = (drawn(shape, 6, device) for shape in ((2, 3, 5), (7, 5), (2, 3)))
    found = []
    for view in (negated, torch.clone):
        inputs = [view(x).requires_grad_() for x in (hidden, weight)]
        out = policy_split.linear_logprobs_and_entropy(*inputs, TARGETS.to(device))
        found.append([*out, *torch.autograd.grad(out, inputs, [view(upstream)] * 2)])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected)


def test_the_operation_itself(backend, device):
    logits = drawn(LOGITS, device=device)
    rest = (TARGETS.reshape(-1).to(device), torch.ones(1, device=device), None, None, None)
    for got, expected in zip(
        ops.logprobs_entropy(negated(logits), *rest), ops.logprobs_entropy(logits, *rest), strict=True
    ):
        torch.testing.assert_close(got, expected)


def with_layout(layout):
    rows = [torch.ones(2, 5), torch.ones(3, 5)]
    return {
        "sparse_coo": lambda: torch.eye(3).to_sparse(),
        "sparse_csr": lambda: torch.eye(3).to_sparse_csr(),
        "mkldnn": lambda: torch.eye(3).to_mkldnn(),
        "jagged": lambda: torch.nested.nested_tensor(rows, layout=torch.jagged),
        "nested": lambda: torch.nested.nested_tensor(rows),
    }[layout]()


@pytest.mark.parametrize("layout", ["sparse_coo", "sparse_csr", "mkldnn", "jagged", "nested"])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning", "ignore:The PyTorch API of nested")
def test_other_layouts_are_refused(layout):
    logits, targets = with_layout(layout), torch.zeros(3, dtype=torch.int64)
    for call in (
        lambda: policy_split.logprobs_and_entropy(logits, targets),
        lambda: policy_split.mode_divergence(logits, logits),
        lambda: policy_split.jensen_shannon_divergence(torch.eye(3), logits),
    ):
        with pytest.raises(TypeError, match="must be a dense, strided tensor, got one of layout torch"):
            call()
