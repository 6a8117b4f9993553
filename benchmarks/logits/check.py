"""Values against float64, on rows from the first to the last: a float64 copy of the whole matrix would not fit."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..lm_head.linear import UPSTREAM, HeadBatch
from .candidates import Batch, divergence_upstream, eager_divergence, eager_statistics, token_losses

ROWS = 64
COLUMNS = 1024  # rows of the weight, and as many that are targets
# Largest error that counts as right: of ours, and of peers, whose fast exponentials and sums are their own affair.
STATISTICS = {"ours": 1e-5, "peer": 1e-3}  # nats, and of a divergence per nat above 1
GRADIENT = {  # of the largest element of the row
    "ours": {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-9},
    "peer": {torch.float32: 1e-4, torch.bfloat16: 2**-6, torch.float16: 2**-8},
}
HEAD = {  # of the norm of a gradient; bfloat16 logits alone cost 2 % of one that is the entropy's alone
    "ours": {torch.float32: 1e-5, torch.bfloat16: 2**-4},
    "peer": {torch.float32: 1e-4, torch.bfloat16: 2**-2},
}
ROUNDED_STATISTICS = 2**-3  # nats: two numbers near 16, each rounded to bfloat16


def sample(tokens: int) -> Tensor:
    count = min(tokens, ROWS)
    return torch.arange(count) * (tokens - 1) // max(count - 1, 1)


def tolerance(outputs: tuple, dtype: torch.dtype, whose: str, of_gradient: bool) -> float:
    """How far outputs may be off: a peer that returns bfloat16 statistics is held to the rounding of that."""
    if of_gradient:
        return GRADIENT[whose][dtype]
    rounded = whose == "peer" and any(x is not None and x.dtype == torch.bfloat16 for x in outputs)
    return ROUNDED_STATISTICS if rounded else STATISTICS[whose]


def statistics_error(outputs: tuple[Tensor, Tensor | None], batch: Batch) -> float:
    """Largest error in nats of (logprobs, entropy or None)."""
    rows = sample(len(batch.targets)).to(batch.targets.device)
    exact = eager_statistics(batch.logits[rows].double(), batch.targets[rows])
    pairs = zip(outputs, exact, strict=True)
    return max(_largest(actual[rows].double() - expected) for actual, expected in pairs if actual is not None)


def gradient_error(
    gradient: Tensor,  # (N, V)
    batch: Batch,
    mask: Tensor | None = None,  # (N,)
    with_entropy: bool = True,
    without_last: bool = False,  # the last token of each sequence counts for nothing
) -> float:
    """Largest error of the mean loss's gradient, relative to the largest element of its row."""
    tokens = len(batch.targets)
    rows = sample(tokens).to(gradient.device)
    weights = torch.full((tokens,), 1 / tokens, device=gradient.device).double()
    if mask is not None:
        weights = mask / mask.sum().double()
    if without_last:
        weights.view(batch.sequences, -1)[:, -1] = 0
    leaf = batch.logits[rows].double().requires_grad_()
    targets, *others = (x[rows] for x in batch.tokens)
    logprobs, entropy = eager_statistics(leaf, targets)
    losses = token_losses(logprobs, entropy if with_entropy else None, *others)
    (expected,) = torch.autograd.grad((losses * weights[rows]).sum(), leaf)
    return _relative(gradient[rows], expected)


def divergence_error(outputs: tuple[Tensor, ...], batches: list[Batch]) -> float:
    """Largest error of the four numbers of each pair of rows, in nats, of numbers above 1 relative."""
    rows = sample(len(batches[0].targets)).to(batches[0].targets.device)
    exact = eager_divergence(*(batch.logits[rows].double() for batch in batches[:2]))
    return max(_largest((a[rows].double() - e) / e.abs().clamp(min=1)) for a, e in zip(outputs, exact, strict=True))


def divergence_gradient_error(gradients: tuple[Tensor, Tensor], batches: list[Batch]) -> float:
    rows = sample(len(batches[0].targets)).to(batches[0].targets.device)
    leaves = [batch.logits[rows].double().requires_grad_() for batch in batches[:2]]
    upstream = [x[rows].double() for x in divergence_upstream(batches[0])]
    exact = torch.autograd.grad(eager_divergence(*leaves), leaves, upstream)
    return max(_relative(actual[rows], expected) for actual, expected in zip(gradients, exact, strict=True))


class HeadGradients:
    """Exact gradients of a loss (logprobs, entropy, *tokens) -> losses (N,): of some hidden states, of some weights."""

    def __init__(self, batch: HeadBatch, losses: Callable, masked: bool = False):
        tokens, device = len(batch.hidden), batch.hidden.device
        self.rows = sample(tokens).to(device)
        spread = torch.arange(0, len(batch.weight), max(len(batch.weight) // COLUMNS, 1), device=device)
        self.columns = torch.cat([spread, batch.targets[:COLUMNS]]).unique()
        counts = batch.mask.double() if masked else torch.ones(tokens, dtype=torch.float64, device=device)
        weights = counts / counts.sum()
        of_rows, self.weight = [], 0
        for start, logits in batch.logits(torch.float64):
            part, leaf = slice(start, start + len(logits)), logits.requires_grad_()
            each = losses(*eager_statistics(leaf, batch.targets[part]), *(x[part] for x in batch.tokens[1:]))
            (gradient,) = torch.autograd.grad((each * weights[part]).sum() * UPSTREAM, leaf)
            self.weight = self.weight + gradient[:, self.columns].t() @ batch.hidden[part].double()
            of_rows.append(gradient[self.rows[(self.rows >= part.start) & (self.rows < part.stop)] - start])
        self.hidden = torch.cat(of_rows) @ batch.weight.double()

    def errors(self, gradients: tuple[Tensor, ...]) -> dict[str, float]:
        """Norm of the difference over the norm: of the worst hidden state, and of the weights unless they are frozen.

        Where the clip takes the policy gradient away, a hidden state has the entropy's gradient alone.
        """
        hidden, *weight = gradients
        norm = self.hidden.norm(dim=-1)
        off = (hidden[self.rows].double() - self.hidden).norm(dim=-1)
        errors = {"hidden": _largest(off / torch.where(norm > 0, norm, norm.max()))}
        for actual in weight:
            errors["weight"] = _largest((actual[self.columns].double() - self.weight).norm() / self.weight.norm())
        return errors


def _largest(difference: Tensor) -> float:
    return difference.abs().nan_to_num(nan=torch.inf).max().item()


def _relative(actual: Tensor, expected: Tensor) -> float:
    scale = expected.abs().amax(-1, keepdim=True)
    return _largest((actual.double() - expected) / torch.where(scale > 0, scale, expected.abs().max()))
