"""The operations of `reference.logits` by the C++ library, on CPU tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..contract import SURROGATES, LossRows, RowStatistics, target_out_of_range
from . import library
from .library import matrix_of, or_nan, pointer, vectors


def logprobs_entropy(
    logits: Tensor,
    targets: Tensor,
    inverse_temperature: Tensor,
    mask: Tensor | None,
    softcap: float | None,
    keep_mask: Tensor | None,
) -> RowStatistics:
    out = RowStatistics(*vectors(logits, 4))
    matrix = matrix_of(logits, None, targets, inverse_temperature, mask, softcap, keep_mask)
    _check(library.loaded().ps_logprobs_entropy(matrix, _statistics(out)), targets, logits)
    return out


def logprobs_entropy_gradient(
    logits: Tensor,
    targets: Tensor,
    inverse_temperature: Tensor,
    mask: Tensor | None,
    softcap: float | None,
    keep_mask: Tensor | None,
    row_max: Tensor,
    log_sum: Tensor,
    entropy: Tensor,
    grad_logprobs: Tensor,
    grad_entropy: Tensor,
    grad_lse: Tensor | None,
    grad_logits: Tensor,
) -> None:
    matrix = matrix_of(logits, grad_logits, targets, inverse_temperature, mask, softcap, keep_mask)
    statistics = library.Statistics(None, pointer(entropy), pointer(row_max), pointer(log_sum))
    row = library.loaded().ps_logprobs_entropy_gradient(
        matrix, statistics, pointer(grad_logprobs), pointer(grad_entropy), pointer(grad_lse)
    )
    _check(row, targets, logits)


def dual_mode_loss(
    logits: Tensor,
    targets: Tensor,
    inverse_temperature: Tensor,
    mask: Tensor | None,
    softcap: float | None,
    keep_mask: Tensor | None,
    advantages: Tensor,
    old_logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    sampler_logprobs: Tensor | None,
    weights: Tensor,
    entropy_coef: Tensor,
    kl_coef: Tensor,
    surrogate: str,
    clip_low: float,
    clip_high: float,
    clip_delta: float | None,
    sampler_cap: float,
    sapo_temperature: Sequence[float],
    use_bias_correction_kl: bool,
    kl_cap: float | None,
    grad_logits: Tensor | None,
) -> LossRows:
    clipped = torch.empty(targets.shape, dtype=torch.bool)
    losses, logprobs, entropy, kl, *rest = vectors(logits, 8)
    out = LossRows(losses, logprobs, entropy, kl, clipped, *rest)
    loss = library.Loss(
        pointer(advantages), pointer(old_logprobs), pointer(ref_logprobs), pointer(sampler_logprobs),
        pointer(weights), pointer(entropy_coef), pointer(kl_coef), SURROGATES.index(surrogate), use_bias_correction_kl,
        clip_low, clip_high, or_nan(clip_delta), sampler_cap, *sapo_temperature, or_nan(kl_cap),
        pointer(out.losses), pointer(kl), pointer(clipped),
        pointer(out.grad_logprobs), pointer(out.grad_entropy),
    )  # fmt: skip
    matrix = matrix_of(logits, grad_logits, targets, inverse_temperature, mask, softcap, keep_mask)
    _check(library.loaded().ps_dual_mode_loss(matrix, _statistics(out), loss), targets, logits)
    return out


def scale_rows_(x: Tensor, scale: Tensor) -> None:
    matrix = matrix_of(x, x, None, None, None, None, None)
    library.loaded().ps_scale_rows(matrix, pointer(scale))


def _statistics(out: RowStatistics | LossRows) -> library.Statistics:
    return library.Statistics(*map(pointer, (out.logprobs, out.entropy, out.row_max, out.log_sum)))


def _check(row: int, targets: Tensor, logits: Tensor) -> None:
    if row >= 0:
        raise target_out_of_range(row, int(targets[row]), logits.shape[-1])
