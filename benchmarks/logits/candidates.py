"""What is compared: the same values by eager PyTorch, by torch.compile and by this package, on the same inputs."""

from collections.abc import Callable

import torch
from torch import Tensor

from policy_split import dual_mode_loss, logprobs_and_entropy, mode_divergence
from policy_split_kernels.memory import free_memory

ENTROPY_COEF = (0.001, 0.002)
CLIP = 0.2
ROWS_AT_ONCE = 1024  # rows made or computed at once, where intermediates in float32 would not fit


class Batch:
    """Logits (N, V) and the per-token inputs of a loss, seeded; with `sequences`, one advantage for each of them."""

    def __init__(
        self, tokens: int, vocabulary: int, dtype: torch.dtype, seed: int, device: str = "cpu",
        sequences: int | None = None, masked: float = 0.0,
    ):  # fmt: skip
        generator = torch.Generator(device).manual_seed(seed)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=generator, device=device)

        self.logits = torch.empty((tokens, vocabulary), dtype=dtype, device=device)
        for rows in self.logits.split(ROWS_AT_ONCE):
            rows.copy_(normal(*rows.shape) * 2)
        self.targets = torch.randint(vocabulary, (tokens,), generator=generator, device=device)
        self.advantages = normal(tokens)
        self.mode = torch.randint(2, (tokens,), generator=generator, device=device)
        parts = zip(self.logits.split(ROWS_AT_ONCE), self.targets.split(ROWS_AT_ONCE), strict=True)
        exact = torch.cat([eager_statistics(*part)[0] for part in parts])
        self.old_logprobs = exact + 0.1 * normal(tokens)
        self.sequences = sequences or 1
        if sequences is not None:
            per_sequence = self.advantages.view(sequences, -1)[:, :1]
            self.advantages = per_sequence.expand(sequences, tokens // sequences).reshape(-1)
        self.mask = normal(tokens).argsort() >= masked * tokens if masked else None

    @property
    def tokens(self) -> tuple[Tensor, ...]:
        """What a loss takes beside the logits."""
        return self.targets, self.advantages, self.mode, self.old_logprobs


def sequences_of(tokens: int) -> int:
    """Into how many sequences of equal length the rows are cut, for functions that take (B, T, V)."""
    return 8 if tokens % 8 == 0 else 1


def eager_statistics(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    log_p = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)
    return log_p.gather(-1, targets[:, None]).squeeze(-1), -(log_p.exp() * log_p).sum(-1)


def eager_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    log_p = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)
    return log_p.gather(-1, targets[:, None]).squeeze(-1)


def token_losses(
    logprobs: Tensor, entropy: Tensor | None, advantages: Tensor, mode: Tensor, old_logprobs: Tensor
) -> Tensor:
    """Clipped policy gradient with an entropy bonus of each token (N,); entropy None: without the bonus."""
    ratio = (logprobs - old_logprobs).exp()
    losses = -torch.min(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)
    return losses if entropy is None else losses - torch.where(mode == 0, *ENTROPY_COEF) * entropy


def eager_loss(
    logits: Tensor, targets: Tensor, advantages: Tensor, mode: Tensor, old_logprobs: Tensor,
    mask: Tensor | None = None, with_entropy: bool = True,
) -> Tensor:  # fmt: skip
    if with_entropy:
        logprobs, entropy = eager_statistics(logits, targets)
    else:
        logprobs, entropy = eager_logprobs(logits, targets), None
    return mean(token_losses(logprobs, entropy, advantages, mode, old_logprobs), mask)


def mean(losses: Tensor, mask: Tensor | None) -> Tensor:
    return losses.mean() if mask is None else (losses * mask).sum() / mask.sum()


def our_loss(
    logits: Tensor, targets: Tensor, advantages: Tensor, mode: Tensor, old_logprobs: Tensor,
    mask: Tensor | None = None, with_entropy: bool = True, inplace_gradient: bool = False,
) -> Tensor:  # fmt: skip
    return dual_mode_loss(
        logits, targets, advantages=advantages, mode=mode, old_logprobs=old_logprobs, mask=mask,
        entropy_coef=ENTROPY_COEF if with_entropy else (0.0, 0.0), inplace_gradient=inplace_gradient,
    ).loss  # fmt: skip


def eager_divergence(logits_a: Tensor, logits_b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """KL(a, b), KL(b, a) and both entropies of each row (N,)."""
    wide = torch.promote_types(logits_a.dtype, torch.float32)
    a, b = (torch.log_softmax(x.to(wide), -1) for x in (logits_a, logits_b))
    p, q = a.exp(), b.exp()
    return (p * (a - b)).sum(-1), (q * (b - a)).sum(-1), -(p * a).sum(-1), -(q * b).sum(-1)


def our_divergence(logits_a: Tensor, logits_b: Tensor) -> tuple[Tensor, ...]:
    return mode_divergence(logits_a, logits_b)


def forward(statistics: Callable, batches: list[Batch]) -> Callable[[int], object]:
    def run(k: int) -> object:
        batch = batches[k % len(batches)]
        with torch.no_grad():
            return statistics(batch.logits, batch.targets)

    return run


def loss_and_gradient(
    loss: Callable, batches: list[Batch], masked: bool = False, with_entropy: bool = True
) -> Callable[[int], object]:
    """Forward and backward by a fixed upstream gradient of 1, the gradient into a fresh buffer."""

    def run(k: int) -> object:
        batch = batches[k % len(batches)]
        leaf = batch.logits.detach().requires_grad_()
        value = loss(leaf, *batch.tokens, mask=batch.mask if masked else None, with_entropy=with_entropy)
        return torch.autograd.grad(value, leaf)

    return run


def loss_and_gradient_inplace(batches: list[Batch], scratch: Tensor) -> Callable[[int], object]:
    """Ours over the logits' own memory: `scratch` holds logits of any values, which each call turns into a gradient."""

    def run(k: int) -> object:
        leaf = scratch.detach().requires_grad_()
        value = our_loss(leaf.view_as(leaf), *batches[k % len(batches)].tokens, inplace_gradient=True)
        return torch.autograd.grad(value, leaf)

    return run


def divergence(function: Callable, batches: list[Batch]) -> Callable[[int], object]:
    """The four numbers of each pair of rows of two batches."""

    def run(k: int) -> object:
        with torch.no_grad():
            return function(batches[k % 2].logits, batches[(k + 1) % 2].logits)

    return run


def divergence_and_gradient(function: Callable, batches: list[Batch]) -> Callable[[int], object]:
    """Forward, and backward to both matrices by fixed upstream gradients that differ from token to token."""

    def run(k: int) -> object:
        a, b = (batches[(k + i) % 2].logits.detach().requires_grad_() for i in range(2))
        return torch.autograd.grad(function(a, b), (a, b), divergence_upstream(batches[k % 2]))

    return run


def divergence_upstream(batch: Batch) -> list[Tensor]:
    return [batch.advantages, batch.old_logprobs, batch.advantages.square(), -batch.old_logprobs]


def loss_and_gradient_new_pages(batches: list[Batch]) -> Callable[[int], object]:
    """Ours without the memory of the last gradient: what the first call costs."""
    run = loss_and_gradient(our_loss, batches)

    def run_after_freeing(k: int) -> object:
        free_memory()
        return run(k)

    return run_after_freeing


def copy(batches: list[Batch], scratch: Tensor) -> Callable[[int], object]:
    return lambda k: scratch.copy_(batches[k % len(batches)].logits)


def statistics_of(name: str) -> Callable:
    return {
        "eager": eager_statistics,
        "compile": torch.compile(eager_statistics, dynamic=False),
        "policy_split": logprobs_and_entropy,
    }[name]


def loss_of(name: str) -> Callable:
    return {"eager": eager_loss, "compile": torch.compile(eager_loss, dynamic=False), "policy_split": our_loss}[name]


def divergence_of(name: str) -> Callable:
    return {
        "eager": eager_divergence,
        "compile": torch.compile(eager_divergence, dynamic=False),
        "policy_split": our_divergence,
    }[name]
