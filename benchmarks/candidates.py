"""What is compared: the same loss by eager PyTorch, by torch.compile and by this package, on the same inputs."""

from collections.abc import Callable

import torch
from policy_split_kernels.memory import free_memory
from torch import Tensor

from policy_split import dual_mode_loss, logprobs_and_entropy

ENTROPY_COEF = (0.001, 0.002)


class Batch:
    """Logits (N, V) and the per-token inputs of a loss, seeded."""

    def __init__(self, tokens: int, vocabulary: int, dtype: torch.dtype, seed: int, device: str = "cpu"):
        generator = torch.Generator().manual_seed(seed)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=generator)

        self.logits = (normal(tokens, vocabulary) * 2).to(device, dtype)
        self.targets = torch.randint(vocabulary, (tokens,), generator=generator).to(device)
        self.advantages = normal(tokens).to(device)
        self.mode = torch.randint(2, (tokens,), generator=generator).to(device)
        exact, _ = eager_statistics(self.logits, self.targets)
        self.old_logprobs = exact + 0.1 * normal(tokens).to(device)


def eager_statistics(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    log_p = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)
    return log_p.gather(-1, targets[:, None]).squeeze(-1), -(log_p.exp() * log_p).sum(-1)


def eager_loss(logits: Tensor, targets: Tensor, advantages: Tensor, mode: Tensor, old_logprobs: Tensor) -> Tensor:
    logprobs, entropy = eager_statistics(logits, targets)
    ratio = (logprobs - old_logprobs).exp()
    surrogate = torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    coef = torch.where(mode == 0, *ENTROPY_COEF)
    return -(surrogate + coef * entropy).mean()


def our_loss(logits: Tensor, targets: Tensor, advantages: Tensor, mode: Tensor, old_logprobs: Tensor) -> Tensor:
    return dual_mode_loss(
        logits, targets, advantages=advantages, mode=mode, old_logprobs=old_logprobs, entropy_coef=ENTROPY_COEF
    ).loss


def forward(statistics: Callable, batches: list[Batch]) -> Callable[[int], object]:
    def run(k: int) -> object:
        batch = batches[k % len(batches)]
        with torch.no_grad():
            return statistics(batch.logits, batch.targets)

    return run


def loss_and_gradient(loss: Callable, batches: list[Batch]) -> Callable[[int], object]:
    """Forward and backward by a fixed upstream gradient of 1, the gradient into a fresh buffer."""

    def run(k: int) -> object:
        batch = batches[k % len(batches)]
        leaf = batch.logits.detach().requires_grad_()
        value = loss(leaf, batch.targets, batch.advantages, batch.mode, batch.old_logprobs)
        return torch.autograd.grad(value, leaf)

    return run


def loss_and_gradient_inplace(batches: list[Batch], scratch: Tensor) -> Callable[[int], object]:
    """Ours over the logits' own memory: `scratch` holds logits of any values, which each call turns into a gradient."""

    def run(k: int) -> object:
        batch = batches[k % len(batches)]
        leaf = scratch.detach().requires_grad_()
        value = dual_mode_loss(
            leaf.view_as(leaf), batch.targets, advantages=batch.advantages, mode=batch.mode,
            old_logprobs=batch.old_logprobs, entropy_coef=ENTROPY_COEF, inplace_gradient=True,
        ).loss  # fmt: skip
        return torch.autograd.grad(value, leaf)

    return run


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
