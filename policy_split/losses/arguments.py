"""What the loss checks of its arguments, and the per-token numbers that it makes of them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from policy_split_kernels.contract import LossArguments, statistics_dtype, valid_rows
from policy_split_kernels.rows import constant, float_vector, mean_weights, rows_lie_apart, token_vector
from policy_split_kernels.watchers import can_ask

from .terms import PolicyTerms
from .weights import token_weights


def check_inplace(logits: Tensor, ratio_level: str, process_group: object) -> None:
    if ratio_level == "sequence":
        raise ValueError("inplace_gradient=True forms the gradient in forward; a sequence's ratio is not known there")
    if process_group is not None:
        raise ValueError("inplace_gradient=True forms the gradient in forward; with a process_group backward does")
    if logits.is_leaf and logits.requires_grad:
        raise ValueError("inplace_gradient=True would overwrite a leaf tensor that requires grad; pass computed logits")
    if not rows_lie_apart(logits):
        raise ValueError(
            f"inplace_gradient=True needs logits whose rows lie apart in memory with a contiguous vocabulary; "
            f"got shape {tuple(logits.shape)} with strides {logits.stride()}{', a negated view' * logits.is_neg()}"
        )


def number_of_modes(**named: Sequence[float]) -> int:
    """How many modes the coefficients are for: zeros alone fit any number, others must agree."""
    for name, values in named.items():
        if len(values) == 0 or not all(-math.inf < value < math.inf for value in values):
            raise ValueError(f"{name} must be finite, one number per mode, got {tuple(values)}")
    sizes = {len(values) for values in named.values() if any(values)} or {max(map(len, named.values()))}
    if len(sizes) > 1:
        raise ValueError(f"one coefficient per mode is needed in each of them, got {named}")
    return sizes.pop()


def coefficients(mode: Tensor, logits: Tensor, **named: Sequence[float]) -> Sequence[Tensor]:
    """The coefficient of each row's mode (N,): no copy from the host to a GPU, where an unknown mode gives NaN."""
    modes = number_of_modes(**named)
    if isinstance(mode, Tensor) and mode.dtype.is_floating_point:
        raise TypeError(f"mode must be integers, got {mode.dtype}")
    row_mode, dtype = token_vector("mode", mode, logits, torch.int64), statistics_dtype(logits.dtype)
    table = tuple(tuple(values) if any(values) else (0.0,) * modes for values in named.values())
    if can_ask(row_mode):
        try:
            return constant(table, dtype).index_select(1, row_mode).unbind()
        except (IndexError, RuntimeError):
            wrong = row_mode[(row_mode < 0) | (row_mode >= modes)]
            raise ValueError(f"mode holds {int(wrong[0])}; {modes} coefficients allow 0 to {modes - 1}") from None
    rows = []
    for values in table:
        coef = torch.full(row_mode.shape, torch.nan, dtype=dtype, device=row_mode.device)
        for k, value in enumerate(values):
            coef = torch.where(row_mode == k, float(value), coef)
        rows.append(coef)
    return rows


def loss_rows(
    logits: Tensor,  # (..., V): their shape, dtype and device count, they are not read
    targets: Tensor,  # (N,)
    mask: Tensor | None,  # (N,)
    advantages: Tensor,
    mode: Tensor,
    old_logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    sampler_logprobs: Tensor | None,
    weights: Tensor | None,
    loss_type: str | None,
    max_completion_length: int | None,
    entropy_coef: Sequence[float],
    kl_coef: Sequence[float],
    terms: PolicyTerms,
) -> LossArguments:
    """What a caller has (...) as rows (N,)."""
    if weights is not None and loss_type is not None:
        raise ValueError("weights and loss_type are two answers to one question; give one of them")
    dtype = statistics_dtype(logits.dtype)
    if weights is not None:
        row_weights = token_vector("weights", weights, logits, dtype)
    elif loss_type is None and terms.reduction == "none":
        row_weights = torch.ones(targets.shape, dtype=dtype, device=logits.device)
    else:
        row_weights = normaliser(targets, mask, logits, loss_type, max_completion_length)
    entropy_rows, kl_rows = coefficients(mode, logits, entropy_coef=entropy_coef, kl_coef=kl_coef)
    return LossArguments(
        token_vector("advantages", advantages, logits, dtype),
        float_vector("old_logprobs", old_logprobs, logits),
        float_vector("ref_logprobs", ref_logprobs, logits),
        float_vector("sampler_logprobs", sampler_logprobs, logits),
        row_weights,
        entropy_rows,
        kl_rows,
        *terms.numbers(),
    )


def normaliser(
    targets: Tensor, mask: Tensor | None, logits: Tensor, loss_type: str | None, max_completion_length: int | None
) -> Tensor:
    """Weight of each row (N,): 1 / number of valid tokens, or that of `loss_type`."""
    if loss_type is None:
        return mean_weights(targets, mask, logits)
    if logits.dim() < 2:
        raise ValueError(f"loss_type={loss_type!r} needs logits (..., T, V), got shape {tuple(logits.shape)}")
    rows = valid_rows(targets, mask).view(-1, max(1, logits.shape[-2])).to(statistics_dtype(logits.dtype))
    return token_weights(rows, loss_type, max_completion_length=max_completion_length).reshape(-1)
