"""What the drop-in functions refuse: dtypes, shapes and devices of every argument, by their names there."""

import pytest
import torch

from policy_split.drop_in import trl, verl

X = torch.zeros(2, 4, 7)
INDEX = torch.zeros(2, 4, dtype=torch.int64)
SEVERAL = torch.zeros(2, 4, 3, dtype=torch.int64)


def of_several(logits=X, index=SEVERAL, **options):
    return trl.selective_log_softmax(logits, index, **options)


def of_one(logits=X, index=INDEX, **options):
    return trl.selective_log_softmax(logits, index, **options)


def with_entropy(logits=X, index=INDEX, **options):
    return trl.selective_log_softmax_and_entropy(logits, index, **options)


def of_labels(logits=X, labels=INDEX, inplace_backward=False):
    return verl.logprobs_from_logits(logits, labels, inplace_backward)


def inplace(logits=None, labels=INDEX, inplace_backward=True):
    logits = X.clone().requires_grad_() * 1 if logits is None else logits
    return verl.logprobs_from_logits(logits, labels, inplace_backward)


INDEXED = {"several": (of_several, "index"), "one": (of_one, "index"), "entropy": (with_entropy, "index")}
LABELLED = {"labels": (of_labels, "labels"), "inplace": (inplace, "labels")}


@pytest.mark.parametrize("function", [*INDEXED, *LABELLED])
class TestTokens:
    def call(self, function):
        function, name = (INDEXED | LABELLED)[function]
        return (lambda x: function(**{name: x})), name, SEVERAL if function is of_several else INDEX

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.bfloat16, torch.complex64], ids=str)
    def test_that_are_no_integers(self, function, dtype):
        call, name, right = self.call(function)
        with pytest.raises(TypeError, match=f"^{name} must be integer token ids .*, got {dtype}"):
            call(right.to(dtype))

    @pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.int8, torch.uint8], ids=str)
    def test_of_any_integers(self, function, dtype):
        call, _, right = self.call(function)
        torch.testing.assert_close(call((right + 3).to(dtype)), call(right + 3))

    def test_of_another_shape(self, function):
        call, name, right = self.call(function)
        with pytest.raises(ValueError, match=f"^{name} has shape .*; expected .*2, 4"):
            call(right[:1])

    def test_on_another_device(self, function):
        call, name, right = self.call(function)
        with pytest.raises(ValueError, match=f"^{name} (is|are) on meta, logits are on cpu"):
            call(right.to("meta"))

    def test_that_are_no_tensor(self, function):
        call, name, right = self.call(function)
        with pytest.raises(TypeError, match=f"^{name} must be a tensor"):
            call(right.tolist())

    def test_outside_the_vocabulary(self, function):
        call, name, right = self.call(function)
        for bad in (7, -1):
            wrong = right.clone()
            wrong[1, 2] = bad
            place = "1, 2, 0" if right is SEVERAL else "1, 2"
            with pytest.raises(IndexError, match=rf"^{name}\[{place}\] = {bad} is outside the vocabulary of 7"):
                call(wrong)


@pytest.mark.parametrize("function", ["several", "one", "entropy"])
class TestRowMask:
    def call(self, function, row_mask):
        return INDEXED[function][0](row_mask=row_mask)

    @pytest.mark.parametrize("shape", [(2, 3), (2, 1), (4,), (1,), (2, 4, 1), (2, 4, 2), ()], ids=str)
    def test_of_another_shape(self, function, shape):
        with pytest.raises(ValueError, match=r"^row_mask has shape .*; expected \(2, 4"):
            self.call(function, torch.ones(shape))

    def test_on_another_device(self, function):
        like = SEVERAL if function == "several" else INDEX
        with pytest.raises(ValueError, match=r"^row_mask is on meta, logits are on cpu"):
            self.call(function, torch.ones_like(like, device="meta"))

    def test_that_is_no_tensor(self, function):
        with pytest.raises(TypeError, match=r"^row_mask must be a tensor"):
            self.call(function, [[True] * 4] * 2)

    def test_of_any_dtype(self, function):
        like = SEVERAL if function == "several" else INDEX
        for dtype in (torch.bool, torch.int32, torch.uint8, torch.float32):
            out = self.call(function, torch.zeros_like(like, dtype=dtype))
            assert all((x == 0).all() for x in (out if isinstance(out, tuple) else (out,)))


EVERY = [of_several, of_one, with_entropy, of_labels, inplace, trl.entropy_from_logits, verl.entropy_from_logits]


@pytest.mark.parametrize("function", EVERY, ids=lambda f: f"{f.__module__}-{f.__name__}")
@pytest.mark.parametrize(
    ("logits", "error", "says"),
    [
        ([[0.0]], TypeError, "logits must be a tensor"),
        (torch.zeros(2, 4, 7, dtype=torch.int64), TypeError, "logits must be one of"),
        (torch.zeros(2, 4, 7, dtype=torch.complex64), TypeError, "logits must be one of"),
        (torch.zeros(2, 4, 0), ValueError, r"\(\.\.\., V\) with V >= 1"),
        (torch.zeros(()), ValueError, r"\(\.\.\., V\) with V >= 1"),
    ],
)
def test_logits_that_are_none(function, logits, error, says):
    with pytest.raises(error, match=says):
        function(logits)


@pytest.mark.parametrize("function", [of_several, of_one, with_entropy])
@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_temperatures(function, temperature):
    with pytest.raises(ValueError, match="temperature must be finite and > 0"):
        function(temperature=temperature)


def test_settings_that_are_no_bool():
    with pytest.raises(TypeError, match=r"inplace_backward must be a bool, got 0\.7"):
        of_labels(inplace_backward=0.7)


def test_ignored_tokens_may_be_anything():
    index = SEVERAL.clone()
    index[0, 1, 2] = 99
    mask = torch.ones_like(index)
    mask[0, 1, 2] = 0
    assert of_several(index=index, row_mask=mask)[0, 1].tolist() == [*of_several()[0, 1, :2].tolist(), 0.0]


def test_a_token_outside_that_cannot_be_read_makes_its_row_nan(monkeypatch):
    """As on a GPU, where nothing is read by the host: not another token's log-prob, nor a fault of the device."""
    monkeypatch.setattr("policy_split.drop_in.trl.check_targets", lambda *_: None)
    logits, index = X.clone().requires_grad_(), SEVERAL.clone()
    index[1, 2, 1] = 7
    out = of_several(logits, index)
    assert out.isnan().nonzero().tolist() == [[1, 2, 1]]
    (gradient,) = torch.autograd.grad(out.sum(), logits)
    assert gradient.isnan().all(-1).nonzero().tolist() == [[1, 2]]
    assert gradient.isnan().any(-1).sum() == 1
