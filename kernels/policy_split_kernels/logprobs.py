"""Log-probabilities and entropy from logits of any leading shape."""

from typing import NamedTuple

import torch.distributed as dist
from torch import Tensor

from .contract import TargetOutsideVocabulary
from .rows import as_rows, inverse_temperature_vector, keep_rows, mask_vector, softcap_value, target_vector
from .vocab_parallel import statistics_of_rows


class LogprobsAndEntropy(NamedTuple):
    """Of each token, `(...)`, in nats, differentiable."""

    logprobs: Tensor
    entropy: Tensor


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
    Raises TypeError or ValueError for wrong dtypes, shapes or devices, IndexError for a target outside the vocabulary
    (on a GPU, where that would cost a synchronisation, the row becomes NaN).
    """
    rows = as_rows(logits)
    arguments = (
        target_vector(targets, logits),
        inverse_temperature_vector(temperature, logits),
        mask_vector(mask, logits),
        softcap_value(softcap),
        keep_rows(keep_mask, logits),
    )
    try:
        logprobs, entropy, _, _ = statistics_of_rows(rows, *arguments, process_group)
    except TargetOutsideVocabulary as error:
        raise error.at(targets) from None
    return LogprobsAndEntropy(logprobs.view(targets.shape), entropy.view(targets.shape))
