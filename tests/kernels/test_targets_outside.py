"""An IndexError names the index in the tensor that the caller passed, whatever the rows, chunks and masks are."""

import pickle

import pytest
import torch

from policy_split import (
    dual_mode_loss,
    linear_dual_mode_loss,
    linear_logprobs_and_entropy,
    linear_token_loss,
    logprobs_and_entropy,
)
from policy_split.drop_in import trl, verl
from policy_split_kernels import ops
from policy_split_kernels.contract import TargetOutsideVocabulary, target_out_of_range

V, D = 7, 3
ONE_TOKEN = 1  # bytes of a chunk


def tokens(targets):
    return {"advantages": torch.ones(targets.shape), "mode": torch.zeros(targets.shape, dtype=torch.int64)}


def of_logits(targets, grad, **options):
    logits = torch.zeros(*targets.shape, V, requires_grad=grad)
    return logprobs_and_entropy(logits, targets, **options)


def of_loss(targets, grad, **options):
    return dual_mode_loss(torch.zeros(*targets.shape, V, requires_grad=grad), targets, **tokens(targets), **options)


def of_sequences(targets, grad, **options):
    return of_loss(targets, grad, ratio_level="sequence", **options)


def linear(function):
    def call(targets, grad, **options):
        hidden = torch.zeros(*targets.shape, D, requires_grad=grad)
        return function(hidden, torch.zeros(V, D), targets, chunk_bytes=ONE_TOKEN, **options)

    return call


FUNCTIONS = {
    "logits": of_logits,
    "loss": of_loss,
    "sequences": of_sequences,
    "linear_logits": linear(linear_logprobs_and_entropy),
    "linear_token_loss": linear(lambda *head, **options: linear_token_loss(*head, lambda l, e, i: l, **options)),
    "linear_loss": linear(lambda h, w, t, **options: linear_dual_mode_loss(h, w, t, **tokens(t), **options)),
}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", list(FUNCTIONS))
@pytest.mark.parametrize("backend", ["torch", "native"], indirect=True)
def test_index_is_the_callers(backend, name, grad):
    """The bad one stands behind tokens that do not count, in a chunk of its own."""
    targets = torch.zeros(2, 5, dtype=torch.int64)
    targets[0, 2] = -100
    mask = torch.ones(2, 5)
    mask[1, 0] = 0
    targets[1, 3] = 99
    with pytest.raises(IndexError, match=r"^targets\[1, 3\] = 99 is outside the vocabulary of 7; expected 0 <= target"):
        FUNCTIONS[name](targets, grad, mask=mask)
    mask[1, 3] = 0
    FUNCTIONS[name](targets, grad, mask=mask)


@pytest.mark.parametrize("name", list(FUNCTIONS))
@pytest.mark.parametrize(
    ("shape", "place", "says"),
    [
        ((3,), (1,), r"targets\[1\]"),
        ((1, 4), (0, 3), r"targets\[0, 3\]"),
        ((4, 1), (2, 0), r"targets\[2, 0\]"),
        ((2, 3, 4), (1, 0, 2), r"targets\[1, 0, 2\]"),
        ((2, 1, 3, 2), (1, 0, 2, 1), r"targets\[1, 0, 2, 1\]"),
        ((), (), "targets"),
    ],
)
def test_any_number_of_dimensions(name, shape, place, says):
    if name == "sequences" and len(shape) < 2:
        pytest.skip("a sequence has an axis of its own")
    targets = torch.zeros(shape, dtype=torch.int64)
    targets[place] = -3
    with pytest.raises(IndexError, match=f"^{says} = -3 is outside"):
        FUNCTIONS[name](targets, False)


def test_the_first_of_several():
    targets = torch.zeros(3, 4, dtype=torch.int64)
    targets[1:, 2:] = V
    for function in FUNCTIONS.values():
        with pytest.raises(IndexError, match=r"^targets\[1, 2\] = 7"):
            function(targets, True)


def test_no_product_is_computed_for_it(monkeypatch):
    monkeypatch.setattr(torch, "mm", None)
    monkeypatch.setattr("policy_split_kernels.lm_head.products._set_product", None)
    with pytest.raises(IndexError, match=r"targets\[3\]"):
        FUNCTIONS["linear_loss"](torch.tensor([0, 1, 2, V]), True)


@pytest.mark.parametrize("backend", ["torch", "native"], indirect=True)
def test_error_of_an_op_knows_its_row(backend):
    targets = torch.tensor([0, 5, V])
    with pytest.raises(TargetOutsideVocabulary) as caught:
        ops.logprobs_entropy(torch.zeros(1, 3, V), targets, torch.ones(1), None, None, None)
    assert (caught.value.row, caught.value.target, caught.value.vocabulary) == (2, V, V)


def test_error_survives_a_pipe():
    """As one of a DataLoader's or a pool's processes sends it."""
    error = target_out_of_range(11, 99, V).at(torch.full((3, 4), 99), "labels")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is TargetOutsideVocabulary
    assert str(again) == str(error)
    assert str(again).startswith("labels[2, 3] = 99 is outside the vocabulary of 7;")
    assert again.row == 11


@pytest.mark.parametrize("name", ["logits", "loss", "linear_logits", "linear_loss"])
def test_compiled_functions_raise_too(name):
    """Of the flattened targets: inside a graph the caller's shape is gone."""
    torch._dynamo.reset()
    compiled = torch.compile(FUNCTIONS[name], fullgraph=True, backend="aot_eager")
    targets, mask = torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.bool)
    mask[0, 1] = False  # in an LM head, whose chunks leave it out, the row would be another
    torch.testing.assert_close(compiled(targets, False, mask=mask)[0], FUNCTIONS[name](targets, False, mask=mask)[0])
    targets[1, 1] = 99
    with pytest.raises(IndexError, match=r"targets\[4\] = 99 is outside the vocabulary of 7"):
        compiled(targets, False, mask=mask)


SMALLEST = torch.iinfo(torch.int64).min  # the kernels' own sign for a target that another process holds


@pytest.mark.parametrize("target", [SMALLEST, SMALLEST + 1, torch.iinfo(torch.int64).max, -1])
@pytest.mark.parametrize("name", list(FUNCTIONS))
@pytest.mark.parametrize("backend", ["torch", "native"], indirect=True)
def test_no_number_means_more_to_a_kernel(backend, name, target):
    targets = torch.zeros(2, 3, dtype=torch.int64)
    targets[1, 2] = target
    with pytest.raises(IndexError, match=rf"^targets\[1, 2\] = {target} is outside"):
        FUNCTIONS[name](targets, True)


@pytest.mark.parametrize("target", [SMALLEST, SMALLEST + 1])
@pytest.mark.parametrize(
    "function",
    [
        verl.logprobs_from_logits,
        trl.selective_log_softmax,
        trl.selective_log_softmax_and_entropy,
        lambda x, y: trl.selective_log_softmax(x, y[..., None].expand(2, 2)),
    ],
)
def test_nor_under_the_names_of_others(function, target):
    for logits in (torch.zeros(2, V), torch.zeros(2, V, requires_grad=True) * 1):
        with pytest.raises(IndexError, match=rf"\[1.*\] = {target} is outside"):
            function(logits, torch.tensor([0, target]))


@pytest.mark.parametrize("backend", ["triton"], indirect=True)
def test_on_a_gpu_such_rows_are_nan(backend):
    logits = torch.zeros(4, V, requires_grad=True)
    targets = torch.tensor([0, SMALLEST, SMALLEST + 1, V])
    logprobs = logprobs_and_entropy(logits, targets).logprobs
    assert logprobs.isnan().tolist() == [False, True, True, True]
    assert torch.autograd.grad(logprobs.sum(), logits)[0].isnan().any(-1).tolist() == [False, True, True, True]
