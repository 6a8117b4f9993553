"""Log-prob, entropy and policy loss in plain PyTorch: the specification, the oracle of the tests, and the fallback.

Arguments and meaning are those of `contract`. Autograd can follow what has no gradient to write: by it forward mode,
second derivatives and the transforms of torch.func are computed.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..contract import (
    ELSEWHERE,
    LossRows,
    RowStatistics,
    check_targets,
    statistics_dtype,
    valid_rows,
)
from .loss import loss_of_statistics


def logprobs_entropy(
    logits: Tensor,  # (B, T, V)
    targets: Tensor,  # (N,)
    inverse_temperature: Tensor,  # (1,) or (N,)
    mask: Tensor | None,  # (N,)
    softcap: float | None,
    keep_mask: Tensor | None,  # (B, T, V)
) -> RowStatistics:
    """Log-probability of the target and entropy of each row: one read of the logits."""
    valid = valid_rows(targets, mask)
    index, here, in_range = _gather_index(targets, valid, logits.shape[-1])
    d, row_max = shifted_rows(transformed(logits, valid, softcap, keep_mask), inverse_temperature)
    e = d.exp()
    total = e.sum(-1)
    log_sum = total.log()
    logprobs = torch.where(here, d.gather(-1, index[:, None]).squeeze(-1) - log_sum, 0.0)
    entropy = log_sum - (e * finite(d)).sum(-1) / total
    legal = torch.where(in_range, 1.0, torch.nan)  # a factor, so that the gradient is NaN, too
    statistics = [x * legal.to(x.dtype) for x in (logprobs, entropy, row_max, log_sum)]
    return RowStatistics(*(torch.where(valid, x, 0.0) for x in statistics))


def logprobs_entropy_gradient(
    logits: Tensor,  # (B, T, V)
    targets: Tensor,  # (N,)
    inverse_temperature: Tensor,  # (1,) or (N,)
    mask: Tensor | None,  # (N,)
    softcap: float | None,
    keep_mask: Tensor | None,  # (B, T, V)
    row_max: Tensor,  # (N,)
    log_sum: Tensor,  # (N,)
    entropy: Tensor,  # (N,)
    grad_logprobs: Tensor,  # (N,) upstream
    grad_entropy: Tensor,  # (N,) upstream
    grad_lse: Tensor | None,  # (N,) upstream of log_sum, from which row_max, a constant, stands apart
    grad_logits: Tensor,  # (B, T, V) written; may be `logits` itself
) -> None:
    """Gradient of the statistics with respect to the logits: one read, one write."""
    valid = valid_rows(targets, mask)
    index, here, in_range = _gather_index(targets, valid, logits.shape[-1])
    x = transformed(logits, valid, softcap, keep_mask)
    d, _ = shifted_rows(x, inverse_temperature, row_max)
    log_p = d - log_sum[:, None]
    p = log_p.exp()
    to_entropy = zero_at_minus_inf(log_p, p * (log_p + entropy[:, None]))
    to_target = torch.zeros_like(p).scatter_(-1, index[:, None], here[:, None].to(p.dtype)) - p
    grad = grad_logprobs[:, None] * to_target - grad_entropy[:, None] * to_entropy
    if grad_lse is not None:
        grad = grad + grad_lse[:, None] * p
    grad = grad * inverse_temperature[:, None]
    if softcap is not None:
        grad = torch.where(x.isfinite(), grad * (1 - (x / softcap).square()), 0.0 * grad)
    if keep_mask is not None:
        grad = torch.where(keep_mask.reshape(grad.shape), grad, 0.0 * grad)
    grad = torch.where(in_range[:, None], grad, torch.nan)
    grad = torch.where(valid[:, None], grad, 0.0)
    grad_logits.copy_(grad.view(logits.shape))


def dual_mode_loss(
    logits: Tensor,  # (B, T, V)
    targets: Tensor,  # (N,)
    inverse_temperature: Tensor,  # (1,) or (N,)
    mask: Tensor | None,  # (N,)
    softcap: float | None,
    keep_mask: Tensor | None,  # (B, T, V)
    advantages: Tensor,  # (N,)
    old_logprobs: Tensor | None,  # (N,); None: on-policy, the ratio is 1 and has a gradient
    ref_logprobs: Tensor | None,  # (N,)
    sampler_logprobs: Tensor | None,  # (N,) of the engine that drew the tokens, where it is not the old policy
    weights: Tensor,  # (N,)
    entropy_coef: Tensor,  # (N,) of the row's mode
    kl_coef: Tensor,  # (N,) of the row's mode
    surrogate: str,  # one of SURROGATES
    clip_low: float,
    clip_high: float,
    clip_delta: float | None,
    sampler_cap: float,
    sapo_temperature: Sequence[float],  # of rows whose advantage is above 0, and of the others
    use_bias_correction_kl: bool,
    kl_cap: float | None,
    grad_logits: Tensor | None,  # (B, T, V) written; may be `logits` itself; None: no gradient is formed
) -> LossRows:
    """Clipped policy loss - entropy bonus + KL penalty of each row, with its gradient: one read, one write."""
    statistics = logprobs_entropy(logits, targets, inverse_temperature, mask, softcap, keep_mask)
    valid = valid_rows(targets, mask)
    rows = loss_of_statistics(
        statistics,
        advantages,
        old_logprobs,
        ref_logprobs,
        sampler_logprobs,
        weights,
        entropy_coef,
        kl_coef,
        surrogate,
        clip_low,
        clip_high,
        clip_delta,
        sampler_cap,
        sapo_temperature,
        use_bias_correction_kl,
        kl_cap,
    )
    clipped = rows.clipped & valid
    rows = LossRows(*(x if x.dtype == torch.bool else torch.where(valid, x, 0.0) for x in rows))._replace(
        clipped=clipped
    )
    if grad_logits is not None:
        logprobs_entropy_gradient(
            logits, targets, inverse_temperature, mask, softcap, keep_mask, rows.row_max, rows.log_sum, rows.entropy,
            rows.grad_logprobs, rows.grad_entropy, None, grad_logits,
        )  # fmt: skip
    return rows


def scale_rows_(
    x: Tensor,  # (B, T, V)
    scale: Tensor,  # (N,)
) -> None:
    """Multiply each row by its number in place; a row whose number is 1 is not touched."""
    x.mul_(scale.view(*x.shape[:-1], 1))


def _gather_index(targets: Tensor, valid: Tensor, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    """An index that can be gathered, whether it is the target's, and whether the row's target is a legal one."""
    here = valid & (targets >= 0) & (targets < vocabulary)
    in_range = ~valid | here | (targets == ELSEWHERE)
    check_targets(targets, valid & (targets != ELSEWHERE), vocabulary)
    return torch.where(here, targets, 0), here, in_range


def transformed(logits: Tensor, valid: Tensor, softcap: float | None, keep_mask: Tensor | None) -> Tensor:
    """x of the module's docstring: (N, V) in the statistics dtype, 0 in rows that are not read."""
    x = logits.reshape(-1, logits.shape[-1]).to(statistics_dtype(logits.dtype))
    x = torch.where(valid[:, None], x, 0.0)
    if softcap is not None:
        infinite = x.isinf()
        x = torch.where(infinite, x.detach(), softcap * torch.tanh(torch.where(infinite, 0.0, x) / softcap))
    if keep_mask is not None:
        x = torch.where(keep_mask.reshape(x.shape) | ~valid[:, None], x, -torch.inf)
    return x


def shifted_rows(x: Tensor, inverse_temperature: Tensor, row_max: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(x - maximum) / temperature: the maximum goes first, so a constant added to all logits changes nothing."""
    row_max = x.detach().amax(-1) if row_max is None else row_max
    return (x - row_max[:, None]) * inverse_temperature[:, None], row_max


def zero_at_minus_inf(log_p: Tensor, x: Tensor) -> Tensor:
    return torch.where(log_p == -torch.inf, 0.0, x)


def finite(log_p: Tensor) -> Tensor:
    """What is multiplied by p, which is 0 where this is 0 in place of -inf."""
    return torch.where(log_p == -torch.inf, 0.0, log_p)
