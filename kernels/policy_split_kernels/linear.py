"""Log-probs, entropy and losses from hidden states and the LM head's weight: N x V logits never exist at once."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .contract import statistics_dtype, valid_rows
from .lm_head.arguments import linear_call
from .lm_head.autograd import linear_loss, linear_statistics
from .lm_head.call import LinearCall
from .lm_head.losses import TokenRows, check_losses
from .logprobs import LogprobsAndEntropy, LogprobsEntropyLse, row_lse
from .outside_graphs import outside_graphs_with_others
from .rows import float_vector, mask_vector, mean_weights, target_vector
from .watchers import is_followed


class TokenLossOutput(NamedTuple):
    """`loss`, differentiable, the sum of `losses`; per token `(...)`, detached, what a log wants; in nats."""

    loss: Tensor  # scalar, or (...) with reduction="none"; differentiable
    losses: Tensor  # (...) detached, weights * loss_fn: the loss is their sum
    logprobs: Tensor  # (...) detached, nats
    entropy: Tensor  # (...) detached, nats


@outside_graphs_with_others
def linear_logprobs_and_entropy(
    hidden: Tensor,  # (..., D)
    weight: Tensor,  # (V, D)
    targets: Tensor,  # (...)
    *,
    bias: Tensor | None = None,  # (V,)
    temperature: float | Tensor = 1.0,
    mask: Tensor | None = None,  # (...)
    softcap: float | None = None,
    keep_mask: Tensor | None = None,  # (..., V) bool
    logit_scale: float = 1.0,
    logits_dtype: torch.dtype | None = None,
    chunk_bytes: int | None = None,
    process_group: "dist.ProcessGroup | None" = None,
    batch_invariant: bool = False,
) -> LogprobsAndEntropy:
    """Log-probability of each target and entropy of each distribution of an LM head, in nats, differentiable.

    The same as::

        logits = logit_scale * torch.nn.functional.linear(hidden, weight, bias)
        logprobs, entropy = logprobs_and_entropy(logits, targets, temperature=..., mask=..., softcap=..., keep_mask=...)

    without the N x V logits: a chunk of tokens at a time, and once more in backward (four GEMMs in all). A loss that is
    known token by token is cheaper by `linear_token_loss`.
    Shapes: hidden `(..., D)`, weight `(V, D)`, bias `(V,)`; targets and mask `(...)`; temperature a number or `(...)`.
    Returns float32 (float64) of shape `(...)`. hidden, weight and bias may differ in dtype (float32, bfloat16, float16,
    float64): the products are those of autocast's dtype, as in F.linear, and else of the one that
    `torch.promote_types` makes of theirs; each gradient has its tensor's own.
    Tokens whose mask is 0 or whose target is -100 are not computed at all: outputs and gradients are 0, and the cost is
    that of the others. Their number is read on the host, which waits for a GPU once.
    The gradients of weight and bias are summed in float32 whatever the dtype, and rounded once. A side that does not
    require a gradient costs no GEMM.
    `chunk_bytes` bounds the logits in memory (default 256 MiB on a CPU, 1.25 GiB on a GPU). Less memory is paid with
    time: every chunk reads and writes the float32 gradient of the weight once, 8 V D bytes, so that a GPU wants 4,096
    tokens or more in a chunk, while a CPU is content with a few hundred.
    `logits_dtype=torch.float32` keeps the logits of 16-bit factors unrounded (on a CPU they always are).
    `logit_scale` multiplies the logits first (Cohere; 1 / logits_scaling of Granite).
    Under torch.compile(fullgraph=True) the pass is one operation of the graph; with a process_group or a DTensor it is
    a graph break.
    `process_group`: weight and bias hold this rank's rows of the vocabulary, in rank order and of any sizes; hidden,
    targets and all else are the same on every rank, and so are the results. The gradient of hidden is all-reduced once.
    A DTensor weight with a process_group is used in place; without one it is gathered (FSDP: each rank has tokens of
    its own), and its gradient is the mean over the ranks, as FSDP's is.
    `batch_invariant=True` gives a token the same bits whatever the other tokens are, results and gradient of hidden
    (the weight's is a sum over tokens): every product then has the rows of a whole chunk, those missing as zeros, so
    that the library has one shape to choose an algorithm for. A call costs whole chunks of `chunk_bytes`.
    Raises TypeError, ValueError or IndexError that name the offending argument, shape or value; RuntimeError for
    create_graph=True.
    """
    call = linear_call(
        hidden, weight, targets, bias, temperature, mask, softcap, keep_mask, logit_scale, logits_dtype, chunk_bytes,
        process_group, batch_invariant,
    )  # fmt: skip
    logprobs, entropy, *_ = (x.view(call.like.shape[:-1]) for x in linear_statistics(call))
    return LogprobsAndEntropy(logprobs, entropy)


@outside_graphs_with_others
def linear_logprobs_entropy_lse(
    hidden: Tensor,  # (..., D)
    weight: Tensor,  # (V, D)
    targets: Tensor,  # (...)
    *,
    bias: Tensor | None = None,  # (V,)
    temperature: float | Tensor = 1.0,
    mask: Tensor | None = None,  # (...)
    softcap: float | None = None,
    keep_mask: Tensor | None = None,  # (..., V) bool
    logit_scale: float = 1.0,
    logits_dtype: torch.dtype | None = None,
    chunk_bytes: int | None = None,
    process_group: "dist.ProcessGroup | None" = None,
    batch_invariant: bool = False,
) -> LogprobsEntropyLse:
    """`linear_logprobs_and_entropy` with the log-sum-exp of each token's logits, at no further cost.

    The same as `logprobs_entropy_lse` of `logit_scale * torch.nn.functional.linear(hidden, weight, bias)`: hidden
    `(..., D)`, weight `(V, D)`, targets and each result `(...)`. Arguments and cost are those of
    `linear_logprobs_and_entropy`.
    Raises TypeError, ValueError, IndexError or RuntimeError, as that does.
    """
    call = linear_call(
        hidden, weight, targets, bias, temperature, mask, softcap, keep_mask, logit_scale, logits_dtype, chunk_bytes,
        process_group, batch_invariant,
    )  # fmt: skip
    rows, tokens = linear_statistics(call), call.arguments
    lse = row_lse(rows, tokens.inverse_temperature, valid_rows(tokens.targets, tokens.mask))
    return LogprobsEntropyLse(*(x.view(call.like.shape[:-1]) for x in (rows.logprobs, rows.entropy, lse)))


@outside_graphs_with_others
def linear_token_loss(
    hidden: Tensor,  # (..., D)
    weight: Tensor,  # (V, D)
    targets: Tensor,  # (...)
    loss_fn: Callable[[Tensor, Tensor, Tensor], Tensor],
    *,
    weights: Tensor | None = None,  # (...)
    bias: Tensor | None = None,  # (V,)
    temperature: float | Tensor = 1.0,
    mask: Tensor | None = None,  # (...)
    softcap: float | None = None,
    keep_mask: Tensor | None = None,  # (..., V) bool
    logit_scale: float = 1.0,
    logits_dtype: torch.dtype | None = None,
    chunk_bytes: int | None = None,
    reduction: str = "sum",
    process_group: "dist.ProcessGroup | None" = None,
    batch_invariant: bool = False,
) -> TokenLossOutput:
    """Any loss of each token's log-prob and entropy, from hidden states, at three GEMMs.

    The same as::

        logprobs, entropy = linear_logprobs_and_entropy(hidden, weight, targets, ...)
        losses = weights * loss_fn(logprobs, entropy, torch.arange(N))  # over the N tokens, flattened
        loss = losses.sum()

    with the gradients formed in forward, chunk by chunk: two GEMMs where hidden or weight does not require a gradient,
    one under `torch.no_grad()`. `loss_fn(logprobs (n,), entropy (n,), index (n,))` is called for the tokens of each
    chunk and returns the n losses; `index` int64 are their places among the N = prod(...) tokens, to look up what else
    the loss needs: `advantages.flatten()[index]`. It must be made of torch operations, each token's loss of its own
    numbers alone. `weights` default to 1 / number of valid tokens.
    Everything else, the other arguments and their errors included, is as in `linear_logprobs_and_entropy`; ValueError
    if loss_fn returns another shape or uses another tensor that requires grad, whose gradient would be lost. A second
    backward computes the logits again, and so does every one in float16, whose gradients need the loss scale first.
    `reduction="none"` gives the losses `(...)` as `loss`, each with an upstream gradient of its own; weights that are
    not given are then 1. It costs four GEMMs, for no token's gradient is known in forward, and so does the function
    under torch.compile, which traces loss_fn. Both call loss_fn once, with all N tokens (log-prob and entropy of those
    that do not count are 0, and their losses are dropped), and other tensors of it get their gradients.
    """
    if not callable(loss_fn):
        raise TypeError(
            f"loss_fn must be a function (logprobs, entropy, index) -> losses, got {type(loss_fn).__name__}"
        )
    if reduction not in ("sum", "none"):
        raise ValueError(f"reduction must be one of 'sum', 'none', got {reduction!r}")
    call = linear_call(
        hidden, weight, targets, bias, temperature, mask, softcap, keep_mask, logit_scale, logits_dtype, chunk_bytes,
        process_group, batch_invariant,
    )  # fmt: skip
    if is_followed(weights):
        raise NotImplementedError(
            "weights requires grad, and linear_token_loss has no gradient for it: detach it, or multiply a loss of the "
            "results of linear_logprobs_and_entropy by it"
        )
    like, row_weights = call.like, float_vector("weights", weights, call.like)
    if row_weights is None and reduction == "sum":
        row_weights = mean_weights(target_vector(targets, like), mask_vector(mask, like), like)
    if row_weights is None:
        row_weights = like.new_ones(like.shape[:-1].numel(), dtype=statistics_dtype(like.dtype))
    if reduction == "none" or torch.compiler.is_compiling():
        return _losses_at_once(call, loss_fn, row_weights, reduction)
    loss, rows = linear_loss(call, TokenRows(loss_fn, row_weights))
    return TokenLossOutput(loss, *(x.view(like.shape[:-1]) for x in (rows.losses, rows.logprobs, rows.entropy)))


def _losses_at_once(
    call: LinearCall, loss_fn: Callable[[Tensor, Tensor, Tensor], Tensor], weights: Tensor, reduction: str
) -> TokenLossOutput:
    """One call of loss_fn for all tokens, differentiated by autograd with the rest of the graph."""
    logprobs, entropy, *_ = linear_statistics(call)
    losses = loss_fn(logprobs, entropy, torch.arange(len(logprobs), device=logprobs.device))
    check_losses(losses, logprobs)
    valid, shape = valid_rows(call.arguments.targets, call.arguments.mask), call.like.shape[:-1]
    losses = torch.where(valid, weights * losses, 0.0)
    detached = (x.detach().view(shape) for x in (losses, logprobs, entropy))
    return TokenLossOutput(losses.view(shape) if reduction == "none" else losses.sum(), *detached)
