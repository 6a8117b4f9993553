"""The dual-mode policy loss on logits: clipped policy gradient, entropy bonus and reference KL of two or more modes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch.distributed as dist
from torch import Tensor, nn

from policy_split_kernels import autograd, followed
from policy_split_kernels.contract import TargetOutsideVocabulary, valid_rows
from policy_split_kernels.rows import (
    as_rows,
    inverse_temperature_vector,
    keep_rows,
    mask_vector,
    softcap_value,
    target_vector,
)
from policy_split_kernels.vector_loss import vector_loss_rows
from policy_split_kernels.vocab_parallel import statistics_of_rows

from .arguments import check_inplace, loss_rows, number_of_modes
from .terms import PolicyTerms, check_terms


class DualModeLossOutput(NamedTuple):
    """What a loss says: `loss`, differentiable; per token `(...)`, detached, what a log wants; in nats."""

    loss: Tensor  # scalar, or (...) with reduction="none"; differentiable
    logprobs: Tensor  # (...) detached, nats
    entropy: Tensor  # (...) detached, nats
    kl: Tensor  # (...) detached, the estimate of the KL from the reference policy that the loss contains, nats
    clipped: Tensor  # (...) bool: the ratio is beyond the bound to which the advantage pushes it, and the clip acted


def dual_mode_loss(
    logits: Tensor,  # (..., V)
    targets: Tensor,  # (...)
    *,
    advantages: Tensor,  # (...)
    mode: Tensor,  # (...) integers: 0 normal, 1 high-entropy, up to the number of coefficients
    old_logprobs: Tensor | None = None,  # (...)
    ref_logprobs: Tensor | None = None,  # (...)
    sampler_logprobs: Tensor | None = None,  # (...)
    mask: Tensor | None = None,  # (...)
    weights: Tensor | None = None,  # (...)
    keep_mask: Tensor | None = None,  # (..., V) bool
    loss_type: str | None = None,
    max_completion_length: int | None = None,
    entropy_coef: Sequence[float] = (0.0, 0.0),
    kl_coef: Sequence[float] = (0.0, 0.0),
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    surrogate: str = "clip",
    ratio_level: str = "token",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    clip_delta: float | None = None,
    sampler_cap: float = 2.0,
    sapo_temperature: Sequence[float] = (1.0, 1.05),
    vespo_k: Sequence[float] = (2.0, 3.0),
    vespo_lambda: Sequence[float] = (3.0, 2.0),
    use_bias_correction_kl: bool = False,
    kl_cap: float | None = None,
    reduction: str = "sum",
    inplace_gradient: bool = False,
    process_group: "dist.ProcessGroup | None" = None,
) -> DualModeLossOutput:
    """Policy loss of a batch whose tokens belong to different modes, with its gradient formed in the same pass.

    The same as::

        x = logits.float() if softcap is None else softcap * torch.tanh(logits.float() / softcap)
        log_p = torch.log_softmax(x.masked_fill(~keep_mask, -torch.inf) / temperature, -1)
        l = log_p.gather(-1, targets[..., None])[..., 0]
        entropy = -(log_p.exp() * log_p).sum(-1)
        ratio = (l - old_logprobs).exp()  # 1 with gradient where old_logprobs is None
        A = advantages * (old_logprobs - sampler_logprobs).exp().clamp(max=sampler_cap)
        clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
        objective = torch.min(ratio * A, clipped * A)  # surrogate="clip"
        objective = clipped.detach() * A * l  # surrogate="cispo"
        kl = (ref_logprobs - l).exp() - (ref_logprobs - l) - 1
        loss = (weights * (-objective - entropy_coef[mode] * entropy + kl_coef[mode] * kl)).sum()

    with `ratio` bounded by `clip_delta` where the advantage is negative. `ratio_level="sequence"` (GSPO) takes in its
    place the exponential of the mean of `l - old_logprobs` over the valid tokens of a row of (..., T); it reads the
    logits twice. `sampler_logprobs` are those of the engine that drew the tokens, `old_logprobs` (or `l`) ours.
    Without `ref_logprobs` kl is 0, whatever `kl_coef`.
    Two surrogates do not clip. "sapo": `objective = 4 / t * sigmoid(t * (ratio - 1)) * A` with t =
    `sapo_temperature[0]` where A > 0, else `[1]`. "vespo", of sequences alone: `objective = phi.detach() * A * l` with
    `phi = w**k * exp(lambda_ * (1 - w))`, w the product of a row's ratios (and sampler weights), k and lambda_ from
    `vespo_k` and `vespo_lambda`, the first where A >= 0. A setting of another surrogate is refused.
    `use_bias_correction_kl` multiplies kl by the token's own ratio, which is differentiable: the gradient is then that
    of the KL itself in expectation, `ratio * (l - ref_logprobs)`. Above `kl_cap`, kl is the cap and has no gradient.
    `reduction="none"` gives the summands: `loss (...)`, each with an upstream gradient of its own; weights that are not
    given are then 1, unless there is a loss_type.
    `clipped` marks the tokens whose advantage pushes the ratio further out of the clip range, A > 0 above it and A < 0
    below it (or above clip_delta): "clip" takes their gradient away, "cispo" bounds its weight. A ratio that is pushed
    back is not counted, although CISPO bounds its weight too. A ratio on a bound, as on policy with a clip range of 0,
    is not clipped: its slope is that of `ratio * A` (PyTorch's clamp had it so up to 2.13, and has the slope 0 there
    since 2.14).
    Shapes: logits `(..., V)`, every per-token argument `(...)`, keep_mask as in `logprobs_and_entropy`. Units: nats.
    `weights` default to those of `loss_type`, "grpo", "dapo", "dr_grpo" (with `max_completion_length`) or "bnpo" as in
    `token_weights`, and else to 1 / number of valid tokens.
    Tokens whose mask is 0 or whose target is -100 are not read and count for nothing.
    `inplace_gradient=True` writes the gradient over the logits, which are then gone: no other N x V memory is used,
    and a second backward raises RuntimeError.
    `process_group` splits the vocabulary over its processes, as in `logprobs_and_entropy`: logits and keep_mask are
    this process's columns, all else is the same in every process, the results, too; each forms the gradient of its own
    columns, in backward, which reads them a second time.
    Raises TypeError, ValueError or IndexError that name the offending argument, shape or value.
    Source: arXiv 2604.11510 section 3; clip arXiv 1707.06347 eq. 7; CISPO arXiv 2506.13585 eq. 4; sequence ratio arXiv
    2507.18071 eq. 5; SAPO arXiv 2511.20347; VESPO arXiv 2602.10693; clip_delta arXiv 1912.09729; k3 estimator
    http://joschu.net/blog/kl-approx.html, corrected arXiv 2512.02556.
    """
    terms = PolicyTerms(
        surrogate, ratio_level, clip_low, clip_high, clip_delta, sampler_cap, sapo_temperature, vespo_k, vespo_lambda,
        use_bias_correction_kl, kl_cap, reduction,
    )  # fmt: skip
    check_terms(terms)
    rows = as_rows(logits)
    if inplace_gradient:
        check_inplace(logits, ratio_level, process_group)
    target, valid = target_vector(targets, logits), mask_vector(mask, logits)
    distribution = (
        target,
        inverse_temperature_vector(temperature, logits),
        valid,
        softcap_value(softcap),
        keep_rows(keep_mask, logits),
    )
    tokens = loss_rows(
        logits, target, valid, advantages, mode, old_logprobs, ref_logprobs, sampler_logprobs, weights, loss_type,
        max_completion_length, entropy_coef, kl_coef, terms,
    )  # fmt: skip
    try:
        more = followed.asks_for_more((rows,), distribution[1], *tokens)
        if more and inplace_gradient:
            raise NotImplementedError(
                "inplace_gradient=True forms the gradient of the logits alone, which backward asks for: no temperature "
                "or per-token argument may require grad, and no forward-mode AD or transform of torch.func be at work"
            )
        if process_group is None and ratio_level == "token" and not more:
            out = autograd.loss_rows(rows, *distribution, *tokens, inplace_gradient=inplace_gradient)
        else:
            logprobs, entropy, *_ = statistics_of_rows(rows, *distribution, process_group)
            length = rows.shape[1] if ratio_level == "sequence" else 1
            out = vector_loss_rows(logprobs, entropy, valid_rows(target, valid), length, tokens, terms.gamma())
    except TargetOutsideVocabulary as error:
        raise error.at(targets) from None
    losses, *detached = out
    if targets.dim() != 1:
        detached = [x.view(targets.shape) for x in detached]
    return DualModeLossOutput(losses.view(targets.shape) if reduction == "none" else losses.sum(), *detached)


class DualModeLoss(nn.Module):
    """`dual_mode_loss` with its settings held: `DualModeLoss(entropy_coef=(0.0, 0.01))(logits, targets, ...)`."""

    def __init__(
        self,
        *,
        loss_type: str | None = None,
        max_completion_length: int | None = None,
        entropy_coef: Sequence[float] = (0.0, 0.0),
        kl_coef: Sequence[float] = (0.0, 0.0),
        temperature: float = 1.0,
        softcap: float | None = None,
        surrogate: str = "clip",
        ratio_level: str = "token",
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        clip_delta: float | None = None,
        sampler_cap: float = 2.0,
        sapo_temperature: Sequence[float] = (1.0, 1.05),
        vespo_k: Sequence[float] = (2.0, 3.0),
        vespo_lambda: Sequence[float] = (3.0, 2.0),
        use_bias_correction_kl: bool = False,
        kl_cap: float | None = None,
        reduction: str = "sum",
        inplace_gradient: bool = False,
        process_group: "dist.ProcessGroup | None" = None,
    ):
        super().__init__()
        settings = dict(locals())
        check_terms(PolicyTerms(*(settings[name] for name in PolicyTerms._fields)))
        number_of_modes(entropy_coef=entropy_coef, kl_coef=kl_coef)
        self.settings: dict[str, Any] = {
            name: value for name, value in settings.items() if name not in ("self", "__class__")
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
        sampler_logprobs: Tensor | None = None,
        mask: Tensor | None = None,
        weights: Tensor | None = None,
        keep_mask: Tensor | None = None,
    ) -> DualModeLossOutput:
        """As `dual_mode_loss`, whose per-token arguments these are."""
        return dual_mode_loss(
            logits, targets, advantages=advantages, mode=mode, old_logprobs=old_logprobs, ref_logprobs=ref_logprobs,
            sampler_logprobs=sampler_logprobs, mask=mask, weights=weights, keep_mask=keep_mask, **self.settings,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.settings.items())
