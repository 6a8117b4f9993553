"""The products of an LM head, by library GEMMs: logits of some tokens, and the gradients that come back through them.

Gradients of weight and bias are summed in float32 (float64 for float64) whatever the dtype of the factors. On a CPU,
where products of 16-bit numbers are slow and round their sums, the factors are widened to float32, the weight a part of
the vocabulary at a time, and so is it where hidden states of another dtype promote it.
"""

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from ..contract import statistics_dtype
from ..memory import empty_dense

PART_BYTES = 16 << 20  # of a part of the weight that is cast
ROW_BYTES = 128  # rows of the buffer start on a multiple: aligned loads and GEMMs whatever the vocabulary


def widens(device: torch.device) -> bool:
    """Whether products of 16-bit factors are computed in float32."""
    return device.type == "cpu"


class Products:
    """hidden (N, D), weight (V, D), bias (V,) or None; nothing of it requires a gradient.

    `operand_dtype` is what the factors are cast to (autocast's, or the promoted one), `logits_dtype` the logits'.
    """

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        operand_dtype: torch.dtype,
        logits_dtype: torch.dtype | None,
    ):
        self.hidden, self.weight, self.bias = hidden, weight, bias
        self.operand_dtype = operand_dtype
        widened = operand_dtype.itemsize == 2 and widens(hidden.device)
        self.compute_dtype = torch.float32 if widened else operand_dtype
        self.logits_dtype = logits_dtype or self.compute_dtype
        self.rows: int | None = None  # of every product whose rows are tokens, with zeros beside those that there are
        self.in_parts = widens(hidden.device) and weight.dtype != self.compute_dtype
        if not self.in_parts:
            self.weight = self._cast(weight)  # once for all chunks, as autocast does

    @property
    def bytes_per_logit(self) -> int:
        """Of the buffer, and of the gradient's copy where the products cannot read it as it is."""
        copied = not self.in_parts and self.logits_dtype != self.compute_dtype
        return self.logits_dtype.itemsize + (self.compute_dtype.itemsize if copied else 0)

    def buffer(self, tokens: int) -> Tensor:
        """Memory for the logits of so many tokens: (tokens, V) with aligned rows."""
        vocabulary, unit = len(self.weight), ROW_BYTES // self.logits_dtype.itemsize
        padded = -(-vocabulary // unit) * unit
        shape, device = (tokens, padded), self.hidden.device
        return empty_dense(shape, self.logits_dtype, device, temporary=True)[:, :vocabulary]

    def factor(self, index: Tensor | slice) -> Tensor:
        """The hidden states of some tokens, as the products take them: (n, D)."""
        return self._cast(self.hidden[index])

    def padded(self, x: Tensor) -> Tensor:
        """x (n, D) as a product takes it whose shape and strides are always the same: (rows, D)."""
        if self.rows is None:
            return x
        out = x.new_zeros((self.rows, x.shape[1]))
        out[: len(x)] = x
        return out

    def padded_logits(self, x: Tensor) -> Tensor:
        """The same of (n, V), of which the buffer holds a whole chunk's."""
        if self.rows in (None, len(x)):
            return x
        out = self.buffer(self.rows or 0).zero_()
        out[: len(x)] = x
        return out

    def logits(self, x: Tensor, out: Tensor) -> None:
        """out (n, V) = x @ weight.T + bias."""
        for part in self.parts():
            bias = None if self.bias is None else self._cast(self.bias[part])
            _set_product(out[:, part], x, self.weight_part(part).t(), bias)

    def parts(self) -> Iterator[slice]:
        """Parts of the vocabulary whose weights are cast together: all of it where none need be."""
        vocabulary, dim = self.weight.shape
        step = max(1, PART_BYTES // (dim * self.compute_dtype.itemsize)) if self.in_parts else vocabulary
        return (slice(start, min(start + step, vocabulary)) for start in range(0, vocabulary, step))

    def _cast(self, x: Tensor) -> Tensor:
        return x.to(self.operand_dtype).to(self.compute_dtype)

    def weight_part(self, part: slice) -> Tensor:
        return self._cast(self.weight[part])


class Gradients:
    """Gradients of the hidden states, the weight and the bias: those that are wanted, else None.

    In float32 (float64): they are rounded to their factors' dtypes once, when the upstream gradient is known, and with
    a vocabulary that is split only after all parts are summed.
    """

    def __init__(self, products: Products, wants: tuple[bool, bool, bool]):
        hidden, weight, device = products.hidden, products.weight, products.hidden.device
        self.products, self._started = products, False
        self._wide = wide = statistics_dtype(products.operand_dtype)
        self.hidden = torch.zeros(hidden.shape, dtype=wide, device=device) if wants[0] else None
        self.weight = empty_dense(weight.shape, wide, device) if wants[1] else None
        self.bias = torch.zeros(len(weight), dtype=wide, device=device) if wants[2] else None

    def add(self, grad_logits: Tensor, x: Tensor, index: Tensor | slice) -> None:
        """What some tokens contribute: their grad_logits (n, V), their factor x (n, D), their places among all."""
        products, n = self.products, len(x)
        if self.bias is not None:
            self.bias += grad_logits.sum(0, dtype=self.bias.dtype)
        if self.hidden is not None:
            grad_logits = products.padded_logits(grad_logits)
        if not products.in_parts:
            grad_logits = grad_logits.to(products.compute_dtype)
        grad_hidden = None if self.hidden is None else self._grad_hidden(self.hidden, x, index)
        for part in products.parts():
            grad = grad_logits[:, part].to(products.compute_dtype)
            if grad_hidden is not None:
                _add_product(grad_hidden, grad, products.weight_part(part), start=part.start == 0)
            if self.weight is not None:
                _add_product(self.weight[part], grad[:n].t(), x, start=not self._started)
        if self.hidden is not None and grad_hidden is not None and grad_hidden._base is not self.hidden:
            self.hidden[index] = grad_hidden[:n]
        self._started = True

    def _grad_hidden(self, hidden: Tensor, x: Tensor, index: Tensor | slice) -> Tensor:
        """Where the products of some tokens are summed: the gradient itself where they lie together."""
        rows = self.products.rows
        if rows is None and isinstance(index, slice):
            return hidden[index]
        return hidden.new_empty((rows or len(x), x.shape[1]))

    def finish(self) -> None:
        """After the last chunk: a weight to which no token contributed has the gradient 0."""
        if self.weight is not None and not self._started:
            self.weight.zero_()


def _set_product(out: Tensor, a: Tensor, b: Tensor, bias: Tensor | None) -> None:
    """out = a @ b + bias; 16-bit factors are summed in float32 where out is that."""
    if out.dtype == a.dtype and bias is not None:
        torch.addmm(bias, a, b, out=out)
        return
    if out.dtype in (a.dtype, torch.float32):
        _add_product(out, a, b, start=True)
    else:
        out.copy_(a @ b)
    if bias is not None:
        out += bias


def _add_product(out: Tensor, a: Tensor, b: Tensor, *, start: bool) -> None:
    """out = a @ b, or += unless it is the start; 16-bit factors are summed in float32 where out is that."""
    if out.dtype == a.dtype:
        torch.mm(a, b, out=out) if start else out.addmm_(a, b)
    elif not sums_in_float32(out.device):
        _add_product(out, a.float(), b.float(), start=start)
    elif start:
        torch.mm(a, b, out_dtype=torch.float32, out=out)
    else:
        torch.addmm(out, a, b, out_dtype=torch.float32, out=out)


@functools.cache
def sums_in_float32(device: torch.device) -> bool:
    """Whether the device's GEMM takes 16-bit factors and adds their product to a float32 matrix."""
    a, out = (torch.zeros(16, 16, dtype=dtype, device=device) for dtype in (torch.bfloat16, torch.float32))
    try:
        torch.mm(a, a, out_dtype=torch.float32, out=out)
        torch.addmm(out, a, a, out_dtype=torch.float32, out=out)
    except (RuntimeError, TypeError, NotImplementedError):
        return False
    return True
