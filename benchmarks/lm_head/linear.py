"""What is compared of the LM head: hidden states and weight -> loss with an entropy bonus -> the gradient of both.

A loss takes (hidden (N, D), weight (V, D), what `HeadBatch.tokens` holds, mask=None). One product of matrices is
2 N D V floating-point operations; three of them (logits, and the gradient of each input) are the least that it takes.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from policy_split import linear_dual_mode_loss, linear_logprobs_and_entropy, linear_token_loss

from ..logits.candidates import ENTROPY_COEF, eager_logprobs, eager_loss, mean, sequences_of, token_losses

UPSTREAM = 0.5  # of the loss: not 1, which some would skip, and exact in any dtype
LOGIT_SCALE = 2.0  # standard deviation of the logits
ROWS_AT_ONCE = 512  # rows of logits made at once, where an N x V matrix in float32 or float64 would not fit


class HeadBatch:
    """Hidden states (N, D), weight (V, D) and the per-token inputs of a loss, seeded; one advantage a sequence.

    No old log-prob puts the ratio near a border of the clip, where the rounding of a logit would decide whether a token
    has a gradient: no two candidates would agree then.
    """

    def __init__(
        self, tokens: int, width: int, vocabulary: int, dtype: torch.dtype, seed: int = 0, device: str = "cpu",
        masked: float = 0.0,
    ):  # fmt: skip
        generator = torch.Generator(device).manual_seed(seed)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=generator, device=device)

        self.hidden = normal(tokens, width).to(dtype)
        self.weight = torch.empty((vocabulary, width), dtype=dtype, device=device)
        for rows in self.weight.split(32 * ROWS_AT_ONCE):
            rows.copy_(normal(*rows.shape) * (LOGIT_SCALE / width**0.5))
        self.targets = torch.randint(vocabulary, (tokens,), generator=generator, device=device)
        self.sequences = sequences_of(tokens)
        self.advantages = normal(self.sequences, 1).expand(-1, tokens // self.sequences).reshape(-1)
        self.mode = torch.randint(2, (tokens,), generator=generator, device=device)
        exact = torch.cat([eager_logprobs(x, self.targets[start : start + len(x)]) for start, x in self.logits()])
        move = (0.1 * normal(tokens)).clamp(-0.3, 0.3)
        self.old_logprobs = exact + torch.where(move.abs() < 0.12, move, 0.3 * move.sign())
        self.mask = normal(tokens).argsort() >= masked * tokens if masked else None

    @property
    def tokens(self) -> tuple[Tensor, ...]:
        """What a loss takes beside hidden states and weight."""
        return self.targets, self.advantages, self.mode, self.old_logprobs

    def logits(self, dtype: torch.dtype = torch.float32) -> Iterator[tuple[int, Tensor]]:
        """(first row, logits of rows from it on) from end to end, computed in `dtype`."""
        wide = self.weight.to(dtype)
        for start in range(0, len(self.hidden), ROWS_AT_ONCE):
            yield start, self.hidden[start : start + ROWS_AT_ONCE].to(dtype) @ wide.t()


def our_head_loss(
    hidden: Tensor, weight: Tensor, targets: Tensor, advantages: Tensor, mode: Tensor, old_logprobs: Tensor,
    mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    return linear_dual_mode_loss(
        hidden, weight, targets, advantages=advantages, mode=mode, old_logprobs=old_logprobs, mask=mask,
        entropy_coef=ENTROPY_COEF,
    ).loss  # fmt: skip


def our_token_loss(hidden: Tensor, weight: Tensor, targets: Tensor, *tokens: Tensor, mask: Tensor | None = None):
    def losses(logprobs: Tensor, entropy: Tensor, index: Tensor) -> Tensor:
        return token_losses(logprobs, entropy, *(x[index] for x in tokens))

    return linear_token_loss(hidden, weight, targets, losses, mask=mask).loss


def our_statistics_loss(hidden: Tensor, weight: Tensor, targets: Tensor, *tokens: Tensor, mask: Tensor | None = None):
    """Four products: the logits again in backward."""
    return mean(token_losses(*linear_logprobs_and_entropy(hidden, weight, targets, mask=mask), *tokens), mask)


def eager_head_loss(hidden: Tensor, weight: Tensor, *tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    return eager_loss(hidden @ weight.t(), *tokens, mask=mask)


def loss_and_gradients(
    loss: Callable, batch: HeadBatch, masked: bool = False, frozen: bool = False
) -> Callable[[int], tuple[Tensor, ...]]:
    """Forward and backward to (hidden, weight), or to hidden alone with a frozen weight, by a fixed upstream gradient.

    The weight alone is larger than a cache, so every round may take the same batch.
    """
    mask = batch.mask if masked else None

    def run(_: int) -> tuple[Tensor, ...]:
        hidden, weight = batch.hidden.detach().requires_grad_(), batch.weight.detach()
        leaves = (hidden,) if frozen else (hidden, weight.requires_grad_())
        value = loss(hidden, weight, *batch.tokens, mask=mask)
        return torch.autograd.grad(value, leaves, torch.full_like(value, UPSTREAM))

    return run


class Products:
    """The products of matrices alone, as a torch user writes them, on a true gradient (N, V): the roofline."""

    def __init__(self, batch: HeadBatch, masked: bool = False):
        self.weight = batch.weight
        self.keep = batch.mask if masked else torch.ones_like(batch.targets, dtype=torch.bool)
        self.hidden = batch.hidden[self.keep]
        self.gradient = self.hidden.new_empty((len(self.hidden), len(self.weight)))
        done = 0
        for start, logits in batch.logits():
            rows, leaf = slice(start, start + len(logits)), logits.requires_grad_()
            value = eager_loss(leaf, *(x[rows] for x in batch.tokens)) * (UPSTREAM * len(logits) / len(self.hidden))
            part = torch.autograd.grad(value, leaf)[0][self.keep[rows]]
            self.gradient[done : done + len(part)] = part
            done += len(part)

    def fresh(self, frozen: bool = False) -> Callable[[int], tuple[Tensor, ...]]:
        """Every product into memory of its own."""

        def run(_: int) -> tuple[Tensor, ...]:
            torch.mm(self.hidden, self.weight.t())
            hidden = torch.mm(self.gradient, self.weight)
            return (hidden,) if frozen else (hidden, torch.mm(self.gradient.t(), self.hidden))

        return run

    def kept(self) -> Callable[[int], tuple[Tensor, ...]]:
        """Every product into memory that is there from the round before."""
        logits, hidden, weight = (torch.empty_like(x) for x in (self.gradient, self.hidden, self.weight))

        def run(_: int) -> tuple[Tensor, ...]:
            torch.mm(self.hidden, self.weight.t(), out=logits)
            torch.mm(self.gradient, self.weight, out=hidden)
            return hidden, torch.mm(self.gradient.t(), self.hidden, out=weight)

        return run

    def operations(self, frozen: bool = False) -> float:
        return (2 if frozen else 3) * 2.0 * self.hidden.numel() * len(self.weight)
