"""The dual-mode policy loss on logits: clipped policy gradient, entropy bonus and reference KL of two or more modes."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from policy_split_kernels import autograd
from policy_split_kernels.reference import statistics_dtype, valid_rows
from policy_split_kernels.rows import (
    as_rows,
    float_vector,
    inverse_temperature_vector,
    mask_vector,
    target_vector,
    token_vector,
)
from torch import Tensor, nn


class DualModeLossOutput(NamedTuple):
    loss: Tensor  # scalar, differentiable
    logprobs: Tensor  # (...) detached, nats
    entropy: Tensor  # (...) detached, nats
    kl: Tensor  # (...) detached k3 estimate against the reference policy, nats
    clipped: Tensor  # (...) bool: the clip took this token's policy gradient away


def dual_mode_loss(
    logits: Tensor,  # (..., V)
    targets: Tensor,  # (...)
    *,
    advantages: Tensor,  # (...)
    mode: Tensor,  # (...) integers: 0 normal, 1 high-entropy, up to the number of coefficients
    old_logprobs: Tensor | None = None,  # (...)
    ref_logprobs: Tensor | None = None,  # (...)
    mask: Tensor | None = None,  # (...)
    weights: Tensor | None = None,  # (...)
    entropy_coef: Sequence[float] = (0.0, 0.0),
    kl_coef: Sequence[float] = (0.0, 0.0),
    temperature: float | Tensor = 1.0,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    clip_delta: float | None = None,
    inplace_gradient: bool = False,
) -> DualModeLossOutput:
    """Policy loss of a batch whose tokens belong to different modes, with its gradient formed in the same pass.

    The same as::

        log_p = torch.log_softmax(logits.float() / temperature, -1)
        l = log_p.gather(-1, targets[..., None])[..., 0]
        entropy = -(log_p.exp() * log_p).sum(-1)
        ratio = (l - old_logprobs).exp()  # 1 with gradient where old_logprobs is None
        surrogate = torch.min(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)
        kl = (ref_logprobs - l).exp() - (ref_logprobs - l) - 1
        loss = (weights * (-surrogate - entropy_coef[mode] * entropy + kl_coef[mode] * kl)).sum()

    with `ratio` bounded by `clip_delta` where the advantage is negative. Shapes: logits `(..., V)`, every per-token
    argument `(...)`; `weights` default to 1 / number of valid tokens. Units: nats.
    Tokens whose mask is 0 or whose target is -100 are not read and count for nothing.
    `inplace_gradient=True` writes the gradient over the logits, which are then gone: no other N x V memory is used,
    and a second backward raises RuntimeError.
    Raises TypeError, ValueError or IndexError that name the offending argument, shape or value.
    Source: arXiv 2604.11510 section 3; clip arXiv 1707.06347 eq. 7; k3 estimator http://joschu.net/blog/kl-approx.html.
    """
    _check_clip(clip_low, clip_high, clip_delta)
    rows = as_rows(logits)
    if inplace_gradient:
        _check_inplace(logits, rows)
    target, valid = target_vector(targets, logits), mask_vector(mask, logits)
    coefficients = _coefficients(mode, logits, entropy_coef=entropy_coef, kl_coef=kl_coef)
    out = autograd.loss_rows(
        rows,
        target,
        inverse_temperature_vector(temperature, logits),
        valid,
        float_vector("advantages", advantages, logits),
        float_vector("old_logprobs", old_logprobs, logits),
        float_vector("ref_logprobs", ref_logprobs, logits),
        _mean_weights(target, valid, logits) if weights is None else float_vector("weights", weights, logits),
        *coefficients,
        float(clip_low),
        float(clip_high),
        None if clip_delta is None else float(clip_delta),
        inplace_gradient=inplace_gradient,
    )
    return DualModeLossOutput(out[0].sum(), *(x.detach().view(targets.shape) for x in out[1:5]))


class DualModeLoss(nn.Module):
    """`dual_mode_loss` with its settings held: `DualModeLoss(entropy_coef=(0.0, 0.01))(logits, targets, ...)`."""

    def __init__(
        self,
        *,
        entropy_coef: Sequence[float] = (0.0, 0.0),
        kl_coef: Sequence[float] = (0.0, 0.0),
        temperature: float = 1.0,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        clip_delta: float | None = None,
        inplace_gradient: bool = False,
    ):
        super().__init__()
        _check_clip(clip_low, clip_high, clip_delta)
        _number_of_modes(entropy_coef=entropy_coef, kl_coef=kl_coef)
        self.settings = {
            "entropy_coef": tuple(entropy_coef),
            "kl_coef": tuple(kl_coef),
            "temperature": temperature,
            "clip_low": clip_low,
            "clip_high": clip_high,
            "clip_delta": clip_delta,
            "inplace_gradient": inplace_gradient,
        }

    def forward(
        self,
        logits: Tensor,
        targets: Tensor,
        *,
        advantages: Tensor,
        mode: Tensor,
        old_logprobs: Tensor | None = None,
        ref_logprobs: Tensor | None = None,
        mask: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> DualModeLossOutput:
        """As `dual_mode_loss`, whose per-token arguments these are."""
        tokens = {"old_logprobs": old_logprobs, "ref_logprobs": ref_logprobs, "mask": mask, "weights": weights}
        return dual_mode_loss(logits, targets, advantages=advantages, mode=mode, **tokens, **self.settings)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.settings.items())


def _check_clip(clip_low: float, clip_high: float, clip_delta: float | None) -> None:
    if not 0 <= clip_low <= 1:
        raise ValueError(f"clip_low must be between 0 and 1, got {clip_low}")
    if not (clip_high >= 0 and math.isfinite(clip_high)):
        raise ValueError(f"clip_high must be finite and >= 0, got {clip_high}")
    if clip_delta is not None and not clip_delta > 1 + clip_high:
        raise ValueError(f"clip_delta must be above 1 + clip_high = {1 + clip_high}, got {clip_delta}")


def _check_inplace(logits: Tensor, rows: Tensor) -> None:
    if logits.is_leaf and logits.requires_grad:
        raise ValueError("inplace_gradient=True would overwrite a leaf tensor that requires grad; pass computed logits")
    copied = logits.stride(-1) != 1 or (logits.dim() > 3 and not logits.is_contiguous())
    if copied or any(stride == 0 and size > 1 for stride, size in zip(rows.stride(), rows.shape, strict=True)):
        raise ValueError(
            f"inplace_gradient=True needs logits whose rows lie apart in memory with a contiguous vocabulary; "
            f"got shape {tuple(logits.shape)} with strides {logits.stride()}"
        )


def _number_of_modes(**named: Sequence[float]) -> int:
    """How many modes the coefficients are for: zeros alone fit any number, others must agree."""
    for name, values in named.items():
        if len(values) == 0 or not all(math.isfinite(value) for value in values):
            raise ValueError(f"{name} must be finite, one number per mode, got {tuple(values)}")
    sizes = {len(values) for values in named.values() if any(values)} or {max(map(len, named.values()))}
    if len(sizes) > 1:
        raise ValueError(f"one coefficient per mode is needed in each of them, got {named}")
    return sizes.pop()


def _coefficients(mode: Tensor, logits: Tensor, **named: Sequence[float]) -> list[Tensor]:
    """The coefficient of each row's mode (N,): no copy from the host, NaN for an unknown mode."""
    modes = _number_of_modes(**named)
    if isinstance(mode, Tensor) and mode.dtype.is_floating_point:
        raise TypeError(f"mode must be integers, got {mode.dtype}")
    row_mode = token_vector("mode", mode, logits)
    if row_mode.device.type == "cpu" and not torch.compiler.is_compiling() and row_mode.numel():
        low, high = int(row_mode.min()), int(row_mode.max())
        if low < 0 or high >= modes:
            raise ValueError(f"mode holds {low if low < 0 else high}; {modes} coefficients allow 0 to {modes - 1}")
    rows = []
    for values in named.values():
        coef = torch.full(row_mode.shape, torch.nan, dtype=statistics_dtype(logits.dtype), device=row_mode.device)
        for k, value in enumerate(values if any(values) else (0.0,) * modes):
            coef = torch.where(row_mode == k, float(value), coef)
        rows.append(coef)
    return rows


def _mean_weights(target: Tensor, valid: Tensor | None, logits: Tensor) -> Tensor:
    count = valid_rows(target, valid).sum().clamp(min=1)
    return count.to(statistics_dtype(logits.dtype)).reciprocal().expand(target.shape).contiguous()
