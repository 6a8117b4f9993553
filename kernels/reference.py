"""Every operation in plain PyTorch: the specification, the oracle of the tests, and the fallback.

The other backends (`native`, `triton_logits`) define functions of the same names and signatures. All of them take

- `logits (B, T, V)`: any strides over B and T, the vocabulary contiguous; N = B * T rows, row n = (n // T, n % T);
- per-row vectors `(N,)`, contiguous, in the statistics dtype (float64 for float64 logits, float32 otherwise);
- `targets (N,)` int64, `mask (N,)` bool or None, `inverse_temperature (1,)` or `(N,)`.

A row whose mask is False or whose target is IGNORE_INDEX is not read: its outputs and its gradient are 0.
A target outside the vocabulary raises IndexError on a CPU and makes its row NaN on a GPU (a check would synchronise).
"""

from typing import NamedTuple

import torch
from torch import Tensor

IGNORE_INDEX = -100


class RowStatistics(NamedTuple):
    logprobs: Tensor  # (N,) log softmax(logits / temperature)[target], nats
    entropy: Tensor  # (N,) of softmax(logits / temperature), nats
    row_max: Tensor  # (N,) maximum of the logits as they were given
    log_sum: Tensor  # (N,) log sum exp((logits - row_max) / temperature); apart from row_max it keeps its precision


class LossRows(NamedTuple):
    losses: Tensor  # (N,) weighted loss of each row
    logprobs: Tensor  # (N,)
    entropy: Tensor  # (N,)
    kl: Tensor  # (N,) k3 estimate against the reference policy, 0 without one
    clipped: Tensor  # (N,) bool: the clip took this row's policy gradient away
    row_max: Tensor  # (N,)
    log_sum: Tensor  # (N,)
    grad_logprobs: Tensor  # (N,) d losses / d logprobs
    grad_entropy: Tensor  # (N,) d losses / d entropy


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def logprobs_entropy(
    logits: Tensor,  # (B, T, V)
    targets: Tensor,  # (N,)
    inverse_temperature: Tensor,  # (1,) or (N,)
    mask: Tensor | None,  # (N,)
) -> RowStatistics:
    """Log-probability of the target and entropy of each row: one read of the logits."""
    rows = logits.reshape(-1, logits.shape[-1])
    valid = valid_rows(targets, mask)
    index, in_range = _gather_index(targets, valid, rows.shape[-1])
    d, row_max = _shifted_rows(rows, inverse_temperature, valid)
    e = d.exp()
    total = e.sum(-1)
    log_sum = total.log()
    logprobs = d.gather(-1, index[:, None]).squeeze(-1) - log_sum
    entropy = log_sum - _zero_at_minus_inf(d, e * d).sum(-1) / total
    statistics = RowStatistics(logprobs, entropy, row_max, log_sum)
    statistics = [torch.where(in_range, x, torch.nan) for x in statistics]
    return RowStatistics(*(torch.where(valid, x, 0.0) for x in statistics))


def logprobs_entropy_gradient(
    logits: Tensor,  # (B, T, V)
    targets: Tensor,  # (N,)
    inverse_temperature: Tensor,  # (1,) or (N,)
    mask: Tensor | None,  # (N,)
    row_max: Tensor,  # (N,)
    log_sum: Tensor,  # (N,)
    entropy: Tensor,  # (N,)
    grad_logprobs: Tensor,  # (N,) upstream
    grad_entropy: Tensor,  # (N,) upstream
    grad_logits: Tensor,  # (B, T, V) written; may be `logits` itself
) -> None:
    """Gradient of both statistics with respect to the logits: one read, one write."""
    rows = logits.reshape(-1, logits.shape[-1])
    valid = valid_rows(targets, mask)
    index, in_range = _gather_index(targets, valid, rows.shape[-1])
    d, _ = _shifted_rows(rows, inverse_temperature, valid, row_max)
    log_p = d - log_sum[:, None]
    p = log_p.exp()
    to_entropy = _zero_at_minus_inf(log_p, p * (log_p + entropy[:, None]))
    to_target = torch.zeros_like(p).scatter_(-1, index[:, None], 1.0) - p
    grad = grad_logprobs[:, None] * to_target - grad_entropy[:, None] * to_entropy
    grad = grad * inverse_temperature[:, None]
    grad = torch.where(in_range[:, None], grad, torch.nan)
    grad = torch.where(valid[:, None], grad, 0.0)
    grad_logits.copy_(grad.view(logits.shape))


def dual_mode_loss(
    logits: Tensor,  # (B, T, V)
    targets: Tensor,  # (N,)
    inverse_temperature: Tensor,  # (1,) or (N,)
    mask: Tensor | None,  # (N,)
    advantages: Tensor,  # (N,)
    old_logprobs: Tensor | None,  # (N,); None: on-policy, the ratio is 1 and has a gradient
    ref_logprobs: Tensor | None,  # (N,)
    weights: Tensor,  # (N,)
    entropy_coef: Tensor,  # (N,) of the row's mode
    kl_coef: Tensor,  # (N,) of the row's mode
    clip_low: float,
    clip_high: float,
    clip_delta: float | None,
    grad_logits: Tensor | None,  # (B, T, V) written; may be `logits` itself; None: no gradient is formed
) -> LossRows:
    """Clipped policy loss - entropy bonus + KL penalty of each row, with its gradient: one read, one write."""
    statistics = logprobs_entropy(logits, targets, inverse_temperature, mask)
    valid = valid_rows(targets, mask)
    rows = loss_of_statistics(
        statistics,
        advantages,
        old_logprobs,
        ref_logprobs,
        weights,
        entropy_coef,
        kl_coef,
        clip_low,
        clip_high,
        clip_delta,
    )
    clipped = rows.clipped & valid
    rows = LossRows(*(x if x.dtype == torch.bool else torch.where(valid, x, 0.0) for x in rows))._replace(
        clipped=clipped
    )
    if grad_logits is not None:
        logprobs_entropy_gradient(
            logits, targets, inverse_temperature, mask, rows.row_max, rows.log_sum, rows.entropy,
            rows.grad_logprobs, rows.grad_entropy, grad_logits,
        )  # fmt: skip
    return rows


def loss_of_statistics(
    statistics: RowStatistics,
    advantages: Tensor,
    old_logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    weights: Tensor,
    entropy_coef: Tensor,
    kl_coef: Tensor,
    clip_low: float,
    clip_high: float,
    clip_delta: float | None,
) -> LossRows:
    """The scalar mathematics of one row: everything between its statistics and its gradient."""
    logprobs, entropy, row_max, log_sum = statistics
    on_policy = torch.where(logprobs.isnan(), logprobs, 1.0)
    ratio = on_policy if old_logprobs is None else (logprobs - old_logprobs).exp()
    bounded = ratio if clip_delta is None else torch.where(advantages < 0, ratio.clamp(max=clip_delta), ratio)
    objective = bounded * advantages
    clip_objective = ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    surrogate = torch.where(clip_objective < objective, clip_objective, objective)
    clipped = (clip_objective < objective) | (bounded < ratio)
    kl, grad_kl = torch.zeros_like(logprobs), torch.zeros_like(logprobs)
    if ref_logprobs is not None:
        grad_kl = -torch.expm1(ref_logprobs - logprobs)
        kl = -grad_kl - (ref_logprobs - logprobs)
    losses = weights * (-surrogate - _scaled(entropy_coef, entropy) + _scaled(kl_coef, kl))
    grad_logprobs = weights * (torch.where(clipped, 0.0, -advantages * ratio) + _scaled(kl_coef, grad_kl))
    grad_entropy = -weights * entropy_coef
    return LossRows(losses, logprobs, entropy, kl, clipped, row_max, log_sum, grad_logprobs, grad_entropy)


def scale_rows_(
    x: Tensor,  # (B, T, V)
    scale: Tensor,  # (N,)
) -> None:
    """Multiply each row by its number in place; a row whose number is 1 is not touched."""
    x.mul_(scale.view(*x.shape[:-1], 1))


def valid_rows(targets: Tensor, mask: Tensor | None) -> Tensor:
    valid = targets != IGNORE_INDEX
    return valid if mask is None else valid & mask


def _gather_index(targets: Tensor, valid: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
    in_range = ~valid | ((targets >= 0) & (targets < vocabulary))
    if targets.device.type == "cpu" and not in_range.all():
        row = int((~in_range).nonzero()[0])
        raise target_out_of_range(row, int(targets[row]), vocabulary)
    return torch.where(valid & in_range, targets, 0), in_range


def target_out_of_range(row: int, target: int, vocabulary: int) -> IndexError:
    return IndexError(
        f"targets[{row}] = {target} is outside the vocabulary of {vocabulary}; "
        f"expected 0 <= target < {vocabulary}, or {IGNORE_INDEX} for a row to be ignored"
    )


def _shifted_rows(
    rows: Tensor, inverse_temperature: Tensor, valid: Tensor, row_max: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(logits - maximum) / temperature: the maximum goes first, so a constant added to all logits changes nothing."""
    rows = torch.where(valid[:, None], rows.to(statistics_dtype(rows.dtype)), 0.0)
    row_max = rows.amax(-1) if row_max is None else row_max
    return (rows - row_max[:, None]) * inverse_temperature[:, None], row_max


def _zero_at_minus_inf(log_p: Tensor, x: Tensor) -> Tensor:
    return torch.where(log_p == -torch.inf, 0.0, x)


def _scaled(coef: Tensor, x: Tensor) -> Tensor:
    """coef * x, 0 where the coefficient is 0 even if x is infinite."""
    return torch.where(coef == 0, 0.0, coef * x)
