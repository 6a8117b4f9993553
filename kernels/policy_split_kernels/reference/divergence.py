"""Divergence of two distributions of logits, row by row, in plain PyTorch; the arguments are those of `contract`."""

import torch
from torch import Tensor

from ..contract import DivergenceRows, MixtureRows
from ..watchers import in_transform, is_followed
from .logits import finite, shifted_rows, transformed, zero_at_minus_inf
from .loss import scaled
from .slopes import sloped


def divergence(
    logits_a: Tensor,  # (B, T, V)
    logits_b: Tensor,  # (B, T, V)
    inverse_temperature: Tensor,  # (1,) or (N,)
    mask: Tensor | None,  # (N,)
) -> DivergenceRows:
    """KL in both directions and both entropies of each pair of rows: one read of either matrix.

    A token that either distribution cannot draw adds nothing to the other's side unless the other can: then its KL is
    +inf, and where an upstream gradient that is not 0 meets that KL, the gradient of the row it averages over is NaN.
    """
    valid = _rows_of_mask(logits_a, mask)
    d_a, d_b, *statistics = _both_shifted(logits_a, logits_b, inverse_temperature, valid)
    log_p, log_q = d_a - statistics[1][:, None], d_b - statistics[3][:, None]
    rows = (
        _mean_gap(log_p, log_q),
        _mean_gap(log_q, log_p),
        *(-(_exp(x) * finite(x)).sum(-1) for x in (log_p, log_q)),
        *statistics,
    )
    return DivergenceRows(*(torch.where(valid, x, 0.0) for x in rows))


def divergence_gradient(
    logits_a: Tensor,  # (B, T, V)
    logits_b: Tensor,  # (B, T, V)
    inverse_temperature: Tensor,  # (1,) or (N,)
    mask: Tensor | None,  # (N,)
    kl_ab: Tensor,  # (N,)
    kl_ba: Tensor,  # (N,)
    entropy_a: Tensor,  # (N,)
    entropy_b: Tensor,  # (N,)
    max_a: Tensor,  # (N,)
    log_sum_a: Tensor,  # (N,)
    max_b: Tensor,  # (N,)
    log_sum_b: Tensor,  # (N,)
    grad_kl_ab: Tensor,  # (N,) upstream
    grad_kl_ba: Tensor,  # (N,) upstream
    grad_entropy_a: Tensor,  # (N,) upstream
    grad_entropy_b: Tensor,  # (N,) upstream
    grad_a: Tensor | None,  # (B, T, V) written; None: not wanted
    grad_b: Tensor | None,  # (B, T, V) written; None: not wanted
) -> None:
    """Gradient of the four with respect to both matrices: one read of either, one write of what is wanted."""
    valid = _rows_of_mask(logits_a, mask)
    log_p, log_q = (
        shifted_rows(transformed(x, valid, None, None), inverse_temperature, row_max)[0] - log_sum[:, None]
        for x, row_max, log_sum in ((logits_a, max_a, log_sum_a), (logits_b, max_b, log_sum_b))
    )
    sides = (
        (grad_a, log_p, log_q, kl_ab, entropy_a, grad_kl_ab, grad_kl_ba, grad_entropy_a),
        (grad_b, log_q, log_p, kl_ba, entropy_b, grad_kl_ba, grad_kl_ab, grad_entropy_b),
    )
    for grad, own, other, kl, entropy, to_own, to_other, to_entropy in sides:
        if grad is None:
            continue
        p = own.exp()
        infinite = torch.where(kl.isinf(), torch.nan, kl)
        to_logits = scaled(to_own[:, None], zero_at_minus_inf(own, p * (own - other - infinite[:, None])))
        to_logits = to_logits + scaled(to_other[:, None], p - other.exp())
        to_logits = to_logits - scaled(to_entropy[:, None], zero_at_minus_inf(own, p * (own + entropy[:, None])))
        to_logits = torch.where(valid[:, None], to_logits * inverse_temperature[:, None], 0.0)
        grad.copy_(to_logits.view(grad.shape))


def jensen_shannon(
    logits_a: Tensor,  # (B, T, V)
    logits_b: Tensor,  # (B, T, V)
    inverse_temperature: Tensor,  # (1,) or (N,)
    mask: Tensor | None,  # (N,)
    beta: float,  # above 0 and below 1: the share of b in the mixture, and the weight of its KL
) -> MixtureRows:
    """Generalised Jensen-Shannon divergence of each pair of rows, arXiv 2306.13649 eq. 1: always finite.

    Either matrix is read twice: the mixture needs both sums.
    """
    valid = _rows_of_mask(logits_a, mask)
    d_a, d_b, *statistics = _both_shifted(logits_a, logits_b, inverse_temperature, valid)
    _, log_sum_a, _, log_sum_b = statistics
    gaps = _gaps_to_mixture(d_a, d_b, log_sum_b - log_sum_a, beta)
    kl_a, kl_b = (
        (_exp(d - log_sum[:, None]) * zero_at_minus_inf(d, gap)).sum(-1)
        for d, log_sum, gap in zip((d_a, d_b), (log_sum_a, log_sum_b), gaps, strict=True)
    )
    rows = ((1 - beta) * kl_a + beta * kl_b, kl_a, kl_b, *statistics)
    return MixtureRows(*(torch.where(valid, x, 0.0) for x in rows))


def jensen_shannon_gradient(
    logits_a: Tensor,  # (B, T, V)
    logits_b: Tensor,  # (B, T, V)
    inverse_temperature: Tensor,  # (1,) or (N,)
    mask: Tensor | None,  # (N,)
    beta: float,
    kl_a: Tensor,  # (N,)
    kl_b: Tensor,  # (N,)
    max_a: Tensor,  # (N,)
    log_sum_a: Tensor,  # (N,)
    max_b: Tensor,  # (N,)
    log_sum_b: Tensor,  # (N,)
    grad_divergence: Tensor,  # (N,) upstream; a row where it is 0 is not read
    grad_a: Tensor | None,  # (B, T, V) written; None: not wanted
    grad_b: Tensor | None,  # (B, T, V) written; None: not wanted
) -> None:
    """Gradient with respect to both matrices: one read of either, one write of what is wanted."""
    valid = _rows_of_mask(logits_a, mask) & (grad_divergence != 0)
    d_a, d_b = (
        shifted_rows(transformed(x, valid, None, None), inverse_temperature, row_max)[0]
        for x, row_max in ((logits_a, max_a), (logits_b, max_b))
    )
    gap_a, gap_b = _gaps_to_mixture(d_a, d_b, log_sum_b - log_sum_a, beta)
    upstream = (grad_divergence * inverse_temperature)[:, None]
    sides = ((grad_a, d_a, log_sum_a, gap_a, kl_a, 1 - beta), (grad_b, d_b, log_sum_b, gap_b, kl_b, beta))
    for grad, d, log_sum, gap, kl, weight in sides:
        if grad is None:
            continue
        p = (d - log_sum[:, None]).exp()
        to_logits = weight * upstream * zero_at_minus_inf(d, p * (gap - kl[:, None]))
        grad.copy_(torch.where(valid[:, None], to_logits, 0.0).view(grad.shape))


def _both_shifted(
    logits_a: Tensor, logits_b: Tensor, inverse_temperature: Tensor, valid: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Both rows below their maxima (N, V), and max_a, log_sum_a, max_b, log_sum_b (N,)."""
    (d_a, max_a), (d_b, max_b) = (
        shifted_rows(transformed(x, valid, None, None), inverse_temperature) for x in (logits_a, logits_b)
    )
    return d_a, d_b, max_a, _exp(d_a).sum(-1).log(), max_b, _exp(d_b).sum(-1).log()


def _gaps_to_mixture(d_a: Tensor, d_b: Tensor, log_sums: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """log p - log m and log q - log m with m = (1 - beta) * p + beta * q, from the larger of p and q: neither cancels.

    -inf for one that is 0 beside one that is not; where both are, nothing is to be learnt, and 0 stands.
    `log_sums` is log_sum_b - log_sum_a: the gap is formed before log p and log q round.
    """
    neither = (d_a == -torch.inf) & (d_b == -torch.inf)
    gap = torch.where(neither, 0.0, d_a - d_b + log_sums[:, None])
    larger = gap >= 0
    size = torch.where(larger, gap, -gap)  # abs has no slope at 0
    of_a, of_b = (gap.new_full((), x) for x in (1 - beta, beta))
    share, rest = torch.where(larger, of_b, of_a), torch.where(larger, of_a, of_b)  # share: of the smaller one
    near = torch.log1p(share * torch.expm1(-size.clamp(max=1.0)))
    from_larger = -torch.where(size < 1, near, (rest + share * (-size).exp()).log())
    from_smaller = from_larger - size
    return torch.where(larger, from_larger, from_smaller), torch.where(larger, from_smaller, from_larger)


def _rows_of_mask(logits: Tensor, mask: Tensor | None) -> Tensor:
    every = torch.ones(logits.shape[0] * logits.shape[1], dtype=torch.bool, device=logits.device)
    return every if mask is None else mask


def _mean_gap(log_p: Tensor, log_q: Tensor) -> Tensor:
    """sum of p * (log p - log q): 0 where p = 0, +inf where only q = 0; then its derivative in log p is NaN."""
    p, drawn, impossible = _exp(log_p), log_p != -torch.inf, log_q == -torch.inf
    gaps = p * torch.where(drawn & ~impossible, log_p - log_q, 0.0)
    gaps = torch.where(drawn & impossible, torch.inf, gaps)
    if not (in_transform() or is_followed(log_p, log_q)):
        return gaps.sum(-1)
    infinite = (drawn & impossible).any(-1, keepdim=True)
    of_p = sloped(finite(log_p), torch.where(infinite, torch.nan, 0.0).to(p.dtype))
    of_q = sloped(log_q, torch.where(drawn & impossible, -p.detach(), 0.0))
    return (gaps + of_p + of_q).sum(-1)


def _exp(log_p: Tensor) -> Tensor:
    """p, of which no gradient, be it NaN, reaches a token that cannot be drawn."""
    return torch.where(log_p == -torch.inf, 0.0, log_p.exp())
