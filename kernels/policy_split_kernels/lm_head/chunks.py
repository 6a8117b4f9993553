"""The LM head in chunks of tokens: logits of a chunk into one reused buffer, a kernel over them, products back.

Only tokens that count are computed: which they are is read on the host, one synchronisation a call on a GPU.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from .. import ops
from ..contract import LossRows, RowStatistics, valid_rows
from ..vocab_parallel import VocabShard, combined_statistics, local_targets
from .products import Gradients, Products

# Bytes of logits in memory at once, unless the caller says otherwise. Each chunk reads and writes the float32 gradient
# of the weight once: a GPU wants thousands of tokens a chunk, a CPU is content with hundreds.
CHUNK_BYTES_CPU, CHUNK_BYTES = 256 << 20, 1280 << 20
GPU_TOKENS = 128  # chunks are multiples of it where the budget allows: whole tiles of a GEMM

Wants = tuple[bool, bool, bool]  # gradients of hidden, weight, bias
# targets, inverse_temperature, mask, softcap, keep_mask: what the kernels take beside the logits of a chunk
Distribution = tuple[Tensor, Tensor, Tensor | None, float | None, Tensor | None]


class Chunk(NamedTuple):
    tokens: Tensor | slice  # their places among all N

    def take(self, x: Any) -> Any:
        """The chunk's part of an argument: vectors of all N tokens are cut, everything else holds for all of them."""
        return x[self.tokens] if isinstance(x, Tensor) and x.numel() > 1 else x

    def places(self, device: torch.device) -> Tensor:
        tokens = self.tokens
        return torch.arange(tokens.start, tokens.stop, device=device) if isinstance(tokens, slice) else tokens


class Loss(Protocol):
    def wants_statistics(self) -> bool:
        """Whether the loss depends on the statistics of all tokens: `prepare` is then called before the first chunk."""

    def prepare(self, statistics: RowStatistics) -> None:
        """Take the statistics of all tokens (N,), detached."""

    def rows(self, statistics: RowStatistics, chunk: Chunk) -> LossRows:
        """The loss of a chunk's tokens and its derivatives, from their statistics."""

    def fused(self, logits: Tensor, arguments: Distribution, chunk: Chunk, form: bool) -> LossRows | None:
        """The same by one kernel that reads the logits and, if `form`, overwrites them by their gradient; or None."""


@dataclass
class LinearHead:
    """One call's LM head; the arguments of its N tokens are as in `reference`, targets of the whole vocabulary."""

    products: Products
    targets: Tensor  # (N,)
    inverse_temperature: Tensor  # (1,) or (N,)
    mask: Tensor | None  # (N,)
    softcap: float | None
    keep_mask: Tensor | None  # (B, T, V)
    chunk_bytes: int | None
    batch_invariant: bool  # every product has the shape of a whole chunk, which the number of tokens does not change
    shard: VocabShard | None

    def __post_init__(self) -> None:
        valid = valid_rows(self.targets, self.mask)
        if self.shard is not None:
            self.targets = local_targets(self.targets, valid, self.shard)
        self._places = None  # of the tokens that count; None: all are computed
        self._count = len(self.targets)
        self._kept: tuple[Chunk, Tensor, Tensor] | None = None  # the one chunk, its logits not overwritten
        if not (valid.is_cuda and torch.cuda.is_current_stream_capturing()):
            places = valid.nonzero().squeeze(-1)
            self._places = None if len(places) == self._count else places
            self._count = len(places)
            self.mask = None  # nothing else is computed
        if self.batch_invariant:
            self.products.rows = self.tokens_at_once

    @property
    def tokens_at_once(self) -> int:
        """Chunks of one size, within the budget."""
        device, products = self.products.hidden.device.type, self.products
        vocabulary = len(products.weight) if self.shard is None else self.shard.largest  # every rank cuts alike
        budget = self.chunk_bytes or (CHUNK_BYTES_CPU if device == "cpu" else CHUNK_BYTES)
        most = max(1, budget // (vocabulary * products.bytes_per_logit))
        if self.batch_invariant:
            return most if device == "cpu" or most < GPU_TOKENS else most - most % GPU_TOKENS
        size = -(-self._count // max(1, -(-self._count // most)))
        return max(1, size if device == "cpu" else min(most, -(-size // GPU_TOKENS) * GPU_TOKENS))

    def chunks(self) -> Iterator[tuple[Chunk, Tensor, Tensor]]:
        """Each chunk with the factor x (n, D) of its tokens and their logits (1, n, V), which may be overwritten."""
        size = self.tokens_at_once
        if self._kept is not None:
            yield self._kept
            self._kept = None
            return
        if self._count == 0:
            return
        buffer = self.products.buffer(size if self.batch_invariant else min(size, self._count))
        for start in range(0, self._count, size):
            place = slice(start, min(start + size, self._count))
            chunk = Chunk(place if self._places is None else self._places[place])
            x = self.products.factor(chunk.tokens)
            padded = self.products.padded(x)
            self.products.logits(padded, buffer[: len(padded)])
            yield chunk, x, buffer[None, : len(x)]

    @property
    def count(self) -> int:
        """Tokens that are computed."""
        return self._count

    def keep(self, chunk: Chunk, x: Tensor, logits: Tensor) -> None:
        """Let the next call of `chunks` give this one, without a product."""
        self._kept = chunk, x, logits

    def arguments(self, chunk: Chunk) -> Distribution:
        """What the kernels take beside the logits of a chunk."""
        keep_mask = self.keep_mask
        if keep_mask is not None and keep_mask.stride()[:2] == (0, 0):  # one row for all tokens, and so it stays
            keep_mask = keep_mask[:1, :1].expand(1, len(chunk.take(self.targets)), -1)
        elif keep_mask is not None:
            places, length = chunk.places(keep_mask.device), keep_mask.shape[1]
            keep_mask = keep_mask[places // length, places % length][None]
        inverse_temperature = chunk.take(self.inverse_temperature)
        return chunk.take(self.targets), inverse_temperature, chunk.take(self.mask), self.softcap, keep_mask

    def statistics(self, logits: Tensor, arguments: Distribution) -> RowStatistics:
        """Those of a chunk, over the whole vocabulary."""
        statistics = RowStatistics(*ops.logprobs_entropy(logits, *arguments))
        if self.shard is None:
            return statistics
        targets, inverse_temperature, mask, *_ = arguments
        valid = valid_rows(targets, mask)
        return combined_statistics(statistics, targets, inverse_temperature, valid, self.shard.group)

    def gradients(self, wants: Wants) -> Gradients:
        return Gradients(self.products, wants)

    def finish(self, gradients: Gradients) -> Gradients:
        """After the last chunk."""
        gradients.finish()
        if self.shard is not None and gradients.hidden is not None:
            dist.all_reduce(gradients.hidden, group=self.shard.group)
        return gradients


def statistics_pass(head: LinearHead, *, keep: bool = False) -> RowStatistics:
    """One product: (N,) each, 0 where a token does not count. keep: logits of a single chunk serve the next pass."""
    with _without_autocast(head):
        out = RowStatistics(*_zeros(head, 4))
        for chunk, x, logits in head.chunks():
            _put(out, head.statistics(logits, head.arguments(chunk)), chunk)
            if keep and logits.shape[1] == head.count:
                head.keep(chunk, x, logits)
    return out


def loss_pass(head: LinearHead, loss: Loss, wants: Wants, *, form: bool) -> tuple[LossRows, Gradients | None]:
    """The loss of each token (N,); if `form`, its gradient for an upstream of 1: three products, two or one."""
    if loss.wants_statistics():
        loss.prepare(statistics_pass(head, keep=True))
    with _without_autocast(head):
        losses, logprobs, entropy, kl, *others = _zeros(head, 8)
        clipped = torch.zeros_like(losses, dtype=torch.bool)
        out = LossRows(losses, logprobs, entropy, kl, clipped, *others)
        gradients = head.gradients(wants) if form else None
        for chunk, x, logits in head.chunks():
            _put(out, _chunk_loss(head, loss, chunk, logits, form), chunk)
            if gradients is not None:
                gradients.add(logits[0], x, chunk.tokens)
        return out, None if gradients is None else head.finish(gradients)


def gradient_pass(
    head: LinearHead, row_max: Tensor, log_sum: Tensor, entropy: Tensor, grad_logprobs: Tensor, grad_entropy: Tensor,
    grad_lse: Tensor | None, wants: Wants,
) -> Gradients:  # fmt: skip
    """Of the statistics, by the upstream gradients of each token (N,): the logits again, and the products back."""
    vectors = (row_max, log_sum, entropy, grad_logprobs, grad_entropy, grad_lse)
    with _without_autocast(head):
        gradients = head.gradients(wants)
        for chunk, x, logits in head.chunks():
            ops.logprobs_entropy_gradient_(logits, *head.arguments(chunk), *map(chunk.take, vectors))
            gradients.add(logits[0], x, chunk.tokens)
        return head.finish(gradients)


def _chunk_loss(head: LinearHead, loss: Loss, chunk: Chunk, logits: Tensor, form: bool) -> LossRows:
    arguments = head.arguments(chunk)
    rows = loss.fused(logits, arguments, chunk, form) if head.shard is None else None
    if rows is not None:
        return rows
    rows = loss.rows(head.statistics(logits, arguments), chunk)
    mask = arguments[2]
    if mask is not None:
        rows = LossRows(*(x & mask if x.dtype == torch.bool else torch.where(mask, x, 0.0) for x in rows))
    if form:
        vectors = (rows.row_max, rows.log_sum, rows.entropy, rows.grad_logprobs, rows.grad_entropy, None)
        ops.logprobs_entropy_gradient_(logits, *arguments, *vectors)
    return rows


def _put(out: tuple[Tensor, ...], rows: tuple[Tensor, ...], chunk: Chunk) -> None:
    for whole, part in zip(out, rows, strict=True):
        whole[chunk.tokens] = part


def _zeros(head: LinearHead, count: int) -> tuple[Tensor, ...]:
    like = head.inverse_temperature  # in the statistics' dtype
    return tuple(like.new_zeros(len(head.targets)) for _ in range(count))


def _without_autocast(head: LinearHead) -> torch.autocast:
    return torch.autocast(head.products.hidden.device.type, enabled=False)
