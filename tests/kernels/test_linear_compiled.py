"""The LM head's functions inside a graph: one operation each, values and gradients those of eager mode."""

import pytest
import torch
from linear_cases import Head, relative_error
from torch._dynamo.testing import CompileCounterWithBackend

from policy_split import linear_dual_mode_loss, linear_logprobs_and_entropy, linear_token_loss
from policy_split_kernels.lm_head import graphs

OTHERS = "a group of processes"
CHUNK = 5 * 64 * 4  # bytes of five tokens' logits
FUNCTIONS = ["statistics", "dual_mode", "token_loss", "sequence", "dual_mode_none", "token_loss_none", "advantages_of"]


def run(head, function, hidden, weight, bias, **options):
    """A scalar of one function's result, by a hidden state that is computed and a loss that goes on."""
    arguments = (2 * hidden, weight, head.targets)
    options = {"bias": bias, "mask": head.mask, "chunk_bytes": CHUNK} | options
    tokens = {"entropy_coef": (0.3, 0.1), "kl_coef": (0.05, 0.2), **head.tokens}
    weights = tokens["weights"]
    if function == "statistics":
        return ((linear_logprobs_and_entropy(*arguments, **options).logprobs * weights).sum()) ** 2
    if function.startswith("token_loss"):
        options["reduction"] = "none" if function.endswith("none") else "sum"
        out = linear_token_loss(*arguments, lambda l, e, i: l.exp() * tokens["advantages"][i] - e * l, **options)
        return (out.loss * weights).sum() if out.loss.dim() else (out.loss / 64).square()
    if function == "dual_mode_none":
        return (linear_dual_mode_loss(*arguments, **tokens, **options, reduction="none").loss * weights).sum()
    if function == "sequence":
        options |= {"ratio_level": "sequence"}
    if function == "advantages_of":
        tokens["advantages"] = lambda logprobs, entropy: entropy - logprobs
    return linear_dual_mode_loss(*arguments, **tokens, **options).loss.div(64).square()


def compiled(function, backend="aot_eager", **settings):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend=backend, **settings)


def check(head, function, tolerance=1e-6, **options):
    right = run(head, function, *head.leaves_or_none, **options)
    expected = torch.autograd.grad(right, head.leaves)
    out = compiled(lambda *leaves: run(head, function, *leaves, **options))(*head.leaves_or_none)
    torch.testing.assert_close(out, right, rtol=tolerance, atol=tolerance)
    gradients = torch.autograd.grad(out, head.leaves)
    assert [x.dtype for x in gradients] == [x.dtype for x in head.leaves]
    assert relative_error(gradients, expected) < tolerance


class Graph(Head):
    @property
    def leaves_or_none(self):
        return self.hidden, self.weight, self.bias


@pytest.mark.parametrize(("function", "bias"), [*((x, True) for x in FUNCTIONS), *((x, False) for x in FUNCTIONS[:2])])
def test_like_eager(function, bias):
    check(Graph(bias=bias), function)


OPTIONS = {
    "temperature_of_each": {"temperature": torch.linspace(0.5, 2, 23)},
    "everything": {"softcap": 3.0, "logit_scale": 2.0, "temperature": 0.7, "keep_mask": torch.arange(57) % 5 < 4},
    "nothing_counts": {"mask": torch.zeros(23, dtype=torch.bool)},
    "all_count": {"mask": None},
}


@pytest.mark.parametrize("function", ["statistics", "dual_mode"])
@pytest.mark.parametrize("name", list(OPTIONS))
def test_options(function, name):
    head = Graph()
    if name == "everything":
        head.targets[head.targets % 5 == 4] -= 1
    if name != "nothing_counts":
        check(head, function, **OPTIONS[name])
        return
    out = compiled(lambda *leaves: run(head, function, *leaves, **OPTIONS[name]))(*head.leaves)
    assert out == 0
    assert not any(x.any() for x in torch.autograd.grad(out, head.leaves))


@pytest.mark.parametrize("function", ["statistics", "dual_mode"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(function, dtype):
    check(Graph(dtype=dtype), function, tolerance={torch.float64: 1e-12}.get(dtype, 2**-7))


@pytest.mark.parametrize("function", ["statistics", "dual_mode"])
def test_factors_of_two_dtypes(function):
    head = Graph()
    head.hidden = head.hidden.detach().bfloat16().requires_grad_()
    head.bias = None
    check(head, function, tolerance=2**-7)


@pytest.mark.parametrize("function", ["statistics", "dual_mode"])
def test_under_autocast(function):
    head = Graph()

    def step(*leaves):
        with torch.autocast("cpu", torch.bfloat16):
            return run(head, function, *leaves)

    right = step(*head.leaves)
    expected = torch.autograd.grad(right, head.leaves)
    out = compiled(step)(*head.leaves)
    torch.testing.assert_close(out, right, rtol=2**-7, atol=2**-7)
    gradients = torch.autograd.grad(out, head.leaves)
    assert {x.dtype for x in gradients} == {torch.float32}
    assert relative_error(gradients, expected) < 2**-7


@pytest.mark.parametrize("function", ["statistics", "dual_mode"])
@pytest.mark.parametrize("frozen", [("weight",), ("hidden",), ("bias",), ("hidden", "weight")])
def test_frozen_factors(function, frozen):
    head = Graph()
    for name in frozen:
        getattr(head, name).requires_grad_(False)
    head_leaves = [x for x in head.leaves if x.requires_grad]
    expected = torch.autograd.grad(run(head, function, *head.leaves_or_none), head_leaves)
    out = compiled(lambda *leaves: run(head, function, *leaves))(*head.leaves_or_none)
    assert relative_error(torch.autograd.grad(out, head_leaves), expected) < 1e-6


@pytest.mark.parametrize("function", FUNCTIONS[:4])
def test_without_gradients(function):
    head = Graph()
    with torch.no_grad():
        right = run(head, function, *head.leaves)
        out = compiled(lambda *leaves: run(head, function, *leaves))(*head.leaves)
    assert not out.requires_grad
    torch.testing.assert_close(out, right)


@pytest.mark.parametrize("function", ["statistics", "dual_mode", "token_loss"])
def test_a_second_backward(function):
    """What was formed in forward is not overwritten in a graph."""
    head = Graph()
    out = compiled(lambda *leaves: run(head, function, *leaves))(*head.leaves)
    first = [x.clone() for x in torch.autograd.grad(3 * out, head.leaves, retain_graph=True)]
    assert relative_error(torch.autograd.grad(out, head.leaves), [x / 3 for x in first]) < 1e-6


@pytest.mark.parametrize("function", ["statistics", "dual_mode", "token_loss"])
def test_one_graph_for_every_length(function):
    """Neither the number of tokens nor of those that count compiles again."""

    def body(hidden, weight, bias, targets, mask, advantages, mode, weights):
        arguments, options = (hidden, weight, targets), {"bias": bias, "mask": mask}
        if function == "statistics":
            return (linear_logprobs_and_entropy(*arguments, **options).entropy * weights).sum()
        options["weights"] = weights
        if function == "token_loss":
            return linear_token_loss(*arguments, lambda l, e, i: l * advantages[i], **options).loss
        return linear_dual_mode_loss(*arguments, advantages=advantages, mode=mode, **options).loss

    counter = CompileCounterWithBackend("aot_eager")
    step = compiled(body, counter, dynamic=True)
    for tokens in (23, 17, 31):
        head = Graph(tokens=tokens, seed=tokens)
        vectors = (head.tokens[name] for name in ("advantages", "mode", "weights"))
        arguments = (*head.leaves, head.targets, head.mask, *vectors)
        torch.testing.assert_close(step(*arguments), body(*arguments))
    assert sum(len(graph.graph.nodes) > 0 for graph in counter.graphs) == 1  # dynamo restarts once, with nothing in it


def test_inductor_computes_it():
    head = Graph()
    right = run(head, "dual_mode", *head.leaves)
    out = compiled(lambda *leaves: run(head, "dual_mode", *leaves), "inductor")(*head.leaves)
    torch.testing.assert_close(out, right)
    assert relative_error(torch.autograd.grad(out, head.leaves), torch.autograd.grad(right, head.leaves)) < 1e-6


def test_a_group_breaks_the_graph():
    """Other processes take part: outside of a graph as ever, and an error that says so where breaks are forbidden."""
    head = Graph()
    step = compiled(lambda *leaves: run(head, "dual_mode", *leaves, process_group=OTHERS))
    with pytest.raises(torch._dynamo.exc.Unsupported, match="disable"):
        step(*head.leaves)


def arguments_of_ops(wants, **options):
    head = Graph(**options)
    from policy_split_kernels.lm_head.arguments import linear_call

    keep = torch.ones(23, 57, dtype=torch.bool)
    keep[:, 3] = False
    head.targets[head.targets == 3] = 4
    call = linear_call(
        *(head.hidden, head.weight, head.targets, head.bias, 0.7, head.mask, 3.0, keep, 1.5, None, CHUNK, None)
    )
    factors = [x.detach() for x in call.factors]
    rows = [torch.randn(23) for _ in range(7)]
    loss = (*rows, "clip", 0.2, 0.3, None, 2.0, [1.0, 1.05], True, 5.0)
    return (*factors, *call.arguments), loss, rows, wants


@pytest.mark.parametrize("wants", [(True, True, True), (False, True, False)])
def test_opcheck(wants):
    head, loss, rows, wants = arguments_of_ops(wants)
    torch.library.opcheck(graphs.linear_statistics_op, head)
    torch.library.opcheck(graphs.linear_statistics_gradient_op, (*head, *rows[:5], None, *wants))
    for form in (True, False):
        torch.library.opcheck(graphs.linear_dual_mode_loss_op, (*head, *loss, *wants, form))


class TestLossesThatAreNotReduced:
    def test_each_has_an_upstream_gradient_of_its_own(self):
        head = Head(dtype=torch.float64)
        upstream = torch.linspace(-1, 2, 23, dtype=torch.float64)
        out = head.token_loss(head.policy_loss, reduction="none")
        weighted = head.token_loss(head.policy_loss, weights=head.tokens["weights"] * upstream)
        torch.testing.assert_close(out.loss.detach(), head.token_loss(head.policy_loss).losses)
        gradients = torch.autograd.grad(out.loss, head.leaves, upstream)
        assert relative_error(gradients, torch.autograd.grad(weighted.loss, head.leaves)) < 1e-12

    def test_weights_are_1_unless_they_are_given(self):
        head = Head(dtype=torch.float64)
        out = head.token_loss(lambda l, e, i: -l, reduction="none", weights=None)
        torch.testing.assert_close(out.loss, -out.logprobs)

    def test_other_tensors_get_their_gradients(self):
        head = Head(dtype=torch.float64)
        scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        out = head.token_loss(lambda l, e, i: scale * l, reduction="none")
        (gradient,) = torch.autograd.grad(out.loss.sum(), scale)
        assert gradient.item() == pytest.approx((out.losses.sum() / 2).item())

    def test_what_loss_fn_makes_of_tokens_that_do_not_count_is_dropped(self):
        """Log-prob and entropy of 0: a logarithm of them must reach neither the loss nor a gradient."""
        head = Head(dtype=torch.float64)
        out = head.token_loss(lambda l, e, i: e.log() / l, reduction="none")
        assert not out.loss[~head.valid].any()
        assert all(x.isfinite().all() for x in torch.autograd.grad(out.loss.sum(), head.leaves))

    def test_bad_ones(self):
        with pytest.raises(ValueError, match="reduction must be one of 'sum', 'none', got 'mean'"):
            Head().token_loss(lambda l, e, i: l, reduction="mean")
        with pytest.raises(ValueError, match="one loss for each of the 23 tokens"):
            Head().token_loss(lambda l, e, i: l.sum(), reduction="none")
