"""Divergence of two distributions of logits, row by row, in plain PyTorch; the arguments are those of `contract`."""

import torch
from torch import Tensor

from ..contract import DivergenceRows
from .logits import shifted_rows, transformed, zero_at_minus_inf
from .loss import scaled


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
    (d_a, max_a), (d_b, max_b) = (
        shifted_rows(transformed(x, valid, None, None), inverse_temperature) for x in (logits_a, logits_b)
    )
    log_sum_a, log_sum_b = d_a.exp().sum(-1).log(), d_b.exp().sum(-1).log()
    log_p, log_q = d_a - log_sum_a[:, None], d_b - log_sum_b[:, None]
    rows = (
        _mean_gap(log_p, log_q),
        _mean_gap(log_q, log_p),
        *(-zero_at_minus_inf(x, x.exp() * x).sum(-1) for x in (log_p, log_q)),
        *(max_a, log_sum_a, max_b, log_sum_b),
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


def _rows_of_mask(logits: Tensor, mask: Tensor | None) -> Tensor:
    every = torch.ones(logits.shape[0] * logits.shape[1], dtype=torch.bool, device=logits.device)
    return every if mask is None else mask


def _mean_gap(log_p: Tensor, log_q: Tensor) -> Tensor:
    """sum of p * (log p - log q): 0 where p = 0, +inf where only q = 0."""
    gaps = torch.where(log_q == -torch.inf, torch.inf, log_p.exp() * (log_p - log_q))
    return zero_at_minus_inf(log_p, gaps).sum(-1)
