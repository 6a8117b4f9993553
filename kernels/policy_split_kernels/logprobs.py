"""Log-probabilities and entropy from logits of any leading shape."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .contract import RowStatistics, TargetOutsideVocabulary, valid_rows
from .dtensor import is_dtensor
from .rows import as_rows, inverse_temperature_vector, keep_rows, mask_vector, softcap_value, target_vector
from .sharded import by_shards
from .vocab_parallel import statistics_of_rows


class LogprobsAndEntropy(NamedTuple):
    """Of each token, `(...)`, in nats, differentiable."""

    logprobs: Tensor
    entropy: Tensor


class LogprobsEntropyLse(NamedTuple):
    """Of each token, `(...)`, in nats, differentiable."""

    logprobs: Tensor
    entropy: Tensor
    lse: Tensor  # log of the sum of exp(x / temperature), the normaliser of the distribution


def logprobs_and_entropy(
    logits: Tensor,  # (..., V)
    targets: Tensor,  # (...)
    *,
    temperature: float | Tensor = 1.0,
    mask: Tensor | None = None,  # (...)
    softcap: float | None = None,
    keep_mask: Tensor | None = None,  # (..., V) bool
    process_group: "dist.ProcessGroup | None" = None,
) -> LogprobsAndEntropy:
    """Log-probability of each target and entropy of each distribution, in nats, differentiable; N x V is read once.

    The same as::

        x = logits.float() if softcap is None else softcap * torch.tanh(logits.float() / softcap)
        x = x if keep_mask is None else x.masked_fill(~keep_mask, -torch.inf)
        log_p = torch.log_softmax(x / temperature, -1)
        logprobs = log_p.gather(-1, targets[..., None])[..., 0]
        entropy = -(log_p.exp() * log_p).sum(-1)

    Shapes: logits `(..., V)` in float32, bfloat16, float16 or float64; targets and mask `(...)`; temperature a number
    or `(...)`; keep_mask bool, `(..., V)` or what expands to it. Returns float32 (float64 for float64 logits) of shape
    `(...)`.
    Rows whose mask is 0 or whose target is -100 are not read: both outputs and the gradient are 0 there.
    A logit of -inf is a token that cannot be drawn: it adds nothing to the entropy or to any gradient. So is one whose
    keep_mask is False: `policy_split.sampling_mask` gives that of top-k, top-p and min-p sampling. `softcap` is Gemma's
    final_logit_softcapping; it comes before the temperature and leaves infinite logits infinite.
    With a `process_group` the vocabulary is split over its processes, in the order of their ranks (tensor parallelism):
    logits and keep_mask are this process's columns `(..., V_r)`, sizes V_r may differ, targets are tokens of the whole
    vocabulary, and they and every other argument are the same in all processes. So are both results. The gradient of a
    process's logits stays with it. The logits are not sent: an all-gather of the sizes and two all-reduces of vectors
    `(1 + 3, N)` are, in forward alone.
    Logits that are a DTensor, sharded over tokens, replicated, or sharded over the vocabulary along one dimension of
    the mesh, are computed where they lie; targets and the other tensors must be DTensors of the same layout (replicated
    along the vocabulary's dimension), and so are the results.
    Raises TypeError or ValueError for wrong dtypes, shapes or devices, IndexError for a target outside the vocabulary
    (on a GPU, where that would cost a synchronisation, the row becomes NaN).
    """
    if is_dtensor(logits):
        arguments = (logits, targets, temperature, mask, softcap, keep_mask, process_group)
        return LogprobsAndEntropy(*by_shards(logprobs_and_entropy, *arguments))
    rows = _statistics(logits, targets, temperature, mask, softcap, keep_mask, process_group)[0]
    return LogprobsAndEntropy(rows.logprobs.view(targets.shape), rows.entropy.view(targets.shape))


def logprobs_entropy_lse(
    logits: Tensor,  # (..., V)
    targets: Tensor,  # (...)
    *,
    temperature: float | Tensor = 1.0,
    mask: Tensor | None = None,  # (...)
    softcap: float | None = None,
    keep_mask: Tensor | None = None,  # (..., V) bool
    process_group: "dist.ProcessGroup | None" = None,
) -> LogprobsEntropyLse:
    """`logprobs_and_entropy` with the log-sum-exp of each row, of the same read and in backward of the same pass.

    The same as those two and, with the x of `logprobs_and_entropy`::

        lse = torch.logsumexp(x / temperature, -1)

    in nats, differentiable: the z-loss of PaLM (arXiv 2204.02311 section 5) is `1e-4 * lse.square()`. Arguments are
    those of `logprobs_and_entropy`: logits `(..., V)`, targets and mask `(...)`, each result `(...)`. 0 where a row is
    masked or its target is -100. A row that is -inf throughout has the lse -inf, as in torch; its log-prob and entropy
    are NaN, for it is no distribution.
    Raises TypeError, ValueError or IndexError, as `logprobs_and_entropy`.
    """
    if is_dtensor(logits):
        arguments = (logits, targets, temperature, mask, softcap, keep_mask, process_group)
        return LogprobsEntropyLse(*by_shards(logprobs_entropy_lse, *arguments))
    rows, inverse_temperature, target, valid = _statistics(
        logits, targets, temperature, mask, softcap, keep_mask, process_group
    )
    vectors = (rows.logprobs, rows.entropy, row_lse(rows, inverse_temperature, valid_rows(target, valid)))
    return LogprobsEntropyLse(*(x.view(targets.shape) for x in vectors))


def row_lse(rows: RowStatistics, inverse_temperature: Tensor, valid: Tensor) -> Tensor:
    """log sum exp(x / temperature) of each row (N,), differentiable as log_sum is; 0 where it is not `valid` (N,)."""
    lse = rows.row_max * inverse_temperature + rows.log_sum
    return torch.where(valid, torch.where(rows.row_max == -torch.inf, -torch.inf, lse), 0.0)


def _statistics(
    logits: Tensor,
    targets: Tensor,
    temperature: float | Tensor,
    mask: Tensor | None,
    softcap: float | None,
    keep_mask: Tensor | None,
    process_group: "dist.ProcessGroup | None",
) -> tuple[RowStatistics, Tensor, Tensor, Tensor | None]:
    """Those of each row (N,), its inverse temperature (1,) or (N,), its target and mask."""
    rows = as_rows(logits)
    arguments = (
        target_vector(targets, logits),
        inverse_temperature_vector(temperature, logits),
        mask_vector(mask, logits),
        softcap_value(softcap),
        keep_rows(keep_mask, logits),
    )
    try:
        statistics = statistics_of_rows(rows, *arguments, process_group)
    except TargetOutsideVocabulary as error:
        raise error.at(targets) from None
    return statistics, arguments[1], arguments[0], arguments[2]
