"""One call of an LM head's function: the factors of its logits, and the arguments of its tokens."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..vocab_parallel import VocabShard
from .chunks import LinearHead, Wants
from .products import Products

# Of the factors, as autograd gives them back in backward, one call's head.
MakeHead = Callable[[Tensor, Tensor, Tensor | None], LinearHead]


class HeadArguments(NamedTuple):
    """All but the factors: `reference`'s of the N tokens, targets of the whole vocabulary, and how to compute."""

    targets: Tensor  # (N,)
    inverse_temperature: Tensor  # (1,) or (N,)
    mask: Tensor | None  # (N,)
    softcap: float | None
    keep_mask: Tensor | None  # (B, T, V)
    operand_dtype: torch.dtype
    logits_dtype: torch.dtype | None
    chunk_bytes: int | None
    batch_invariant: bool


class LinearCall(NamedTuple):
    hidden: Tensor  # (N, D)
    weight: Tensor  # (V, D)
    bias: Tensor | None  # (V,)
    arguments: HeadArguments
    shard: VocabShard | None
    like: Tensor  # (..., V) of no memory: the shape, dtype and device of the logits that are not there

    @property
    def factors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.hidden, self.weight, self.bias

    @property
    def wants(self) -> Wants:
        hidden, weight, bias = self.factors
        return hidden.requires_grad, weight.requires_grad, bias is not None and bias.requires_grad

    def make_head(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> LinearHead:
        return linear_head(hidden, weight, bias, self.arguments, self.shard)


def linear_head(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, arguments: HeadArguments, shard: VocabShard | None = None
) -> LinearHead:
    x, detached = arguments, None if bias is None else bias.detach()
    products = Products(hidden.detach(), weight.detach(), detached, x.operand_dtype, x.logits_dtype)
    distribution = (x.targets, x.inverse_temperature, x.mask, x.softcap, x.keep_mask)
    return LinearHead(products, *distribution, x.chunk_bytes, x.batch_invariant, shard)
