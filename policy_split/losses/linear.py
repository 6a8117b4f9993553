"""The dual-mode policy loss from hidden states and the LM head's weight, at the price of three GEMMs."""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from policy_split_kernels.contract import RowStatistics, valid_rows
from policy_split_kernels.lm_head.arguments import linear_call
from policy_split_kernels.lm_head.autograd import linear_loss, linear_statistics
from policy_split_kernels.lm_head.losses import DualModeRows
from policy_split_kernels.outside_graphs import outside_graphs_with_others
from policy_split_kernels.rows import mask_vector, target_vector, token_vector
from policy_split_kernels.vector_loss import vector_loss_rows
from policy_split_kernels.watchers import is_followed

from .arguments import loss_rows
from .dual_mode import DualModeLossOutput
from .terms import PolicyTerms, check_terms


@outside_graphs_with_others
def linear_dual_mode_loss(
    hidden: Tensor,  # (..., D)
    weight: Tensor,  # (V, D)
    targets: Tensor,  # (...)
    *,
    advantages: Tensor | Callable[[Tensor, Tensor], Tensor],  # (...), or a function of log-probs and entropy (...)
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
    bias: Tensor | None = None,  # (V,)
    logit_scale: float = 1.0,
    logits_dtype: torch.dtype | None = None,
    chunk_bytes: int | None = None,
    process_group: "dist.ProcessGroup | None" = None,
    batch_invariant: bool = False,
) -> DualModeLossOutput:
    """`dual_mode_loss` of an LM head, its gradients formed in forward, without the N x V logits.

    The same as::

        logits = logit_scale * torch.nn.functional.linear(hidden, weight, bias)
        out = dual_mode_loss(logits, targets, advantages=..., mode=..., ...)

    a chunk of tokens at a time: three GEMMs, two where hidden or weight does not require a gradient, one under
    `torch.no_grad()`. Gradients of weight and bias are summed in float32 whatever the dtype.
    Shapes: hidden `(..., D)`, weight `(V, D)`, bias `(V,)`, every per-token argument `(...)`. Units: nats. The loss,
    its arguments and sources are those of `dual_mode_loss`; bias, logit_scale, logits_dtype, chunk_bytes (the one knob
    of memory against time), process_group and batch_invariant those of `linear_logprobs_and_entropy`.
    Raises TypeError, ValueError or IndexError that name the offending argument, shape or value, as those two do.
    Advantages that depend on the log-probs themselves (`dual_mode_advantages`) may be a function of the log-probs and
    entropies of all tokens, both detached: it is called once, in forward. That takes one more GEMM, unless one chunk
    (chunk_bytes) holds all tokens. NotImplementedError where its result requires grad, by tensors of its own.
    A second backward computes the logits again, and so does every one in float16, whose gradients need the loss scale
    first, of `ratio_level="sequence"`, where no token's gradient is known before its sequence is, and of
    `reduction="none"`, where each has an upstream gradient of its own: four GEMMs.
    Source: arXiv 2604.11510 section 3.
    """
    terms = PolicyTerms(
        surrogate, ratio_level, clip_low, clip_high, clip_delta, sampler_cap, sapo_temperature, vespo_k, vespo_lambda,
        use_bias_correction_kl, kl_cap, reduction,
    )  # fmt: skip
    check_terms(terms)
    call = linear_call(
        hidden, weight, targets, bias, temperature, mask, softcap, keep_mask, logit_scale, logits_dtype, chunk_bytes,
        process_group, batch_invariant,
    )  # fmt: skip
    like, target, valid = call.like, target_vector(targets, call.like), mask_vector(mask, call.like)
    known = targets.new_zeros(targets.shape, dtype=like.dtype) if callable(advantages) else advantages
    tokens = loss_rows(
        like, target, valid, known, mode, old_logprobs, ref_logprobs, sampler_logprobs, weights, loss_type,
        max_completion_length, entropy_coef, kl_coef, terms,
    )  # fmt: skip
    rows: tuple[Tensor, ...]
    if ratio_level == "sequence" or reduction == "none" or is_followed(*tokens):
        logprobs, entropy, *_ = linear_statistics(call)
        if callable(advantages):
            of_tokens = advantages(*(x.detach().view(targets.shape) for x in (logprobs, entropy)))
            tokens = tokens._replace(advantages=token_vector("advantages", of_tokens, like, logprobs.dtype))
        length = like.shape[-2] if ratio_level == "sequence" else 1
        rows = vector_loss_rows(logprobs, entropy, valid_rows(target, valid), length, tokens, terms.gamma())
        loss = rows[0].view(targets.shape) if reduction == "none" else rows[0].sum()
    else:
        wait = None
        if callable(advantages):
            followed = torch.is_grad_enabled()

            def wait(statistics: RowStatistics) -> Tensor:
                seen = (x.view(targets.shape) for x in (statistics.logprobs, statistics.entropy))
                with torch.set_grad_enabled(followed):  # which is off where gradients are formed by hand
                    of_tokens = advantages(*seen)
                    _check_constant(of_tokens)
                return token_vector("advantages", of_tokens, like, statistics.logprobs.dtype)

        loss, rows = linear_loss(call, DualModeRows(tokens, wait))
    return DualModeLossOutput(loss, *(x.view(targets.shape) for x in rows[1:5]))


def _check_constant(advantages: Tensor) -> None:
    if is_followed(advantages):
        raise NotImplementedError(
            "advantages are a function whose result requires grad, by tensors that it uses besides its arguments, and "
            "their gradient would be lost: detach those, or call the function with the results of "
            "linear_logprobs_and_entropy and give its tensor as advantages, which has its gradient"
        )
