"""The functions of TRL 1.16 (`trl.trainer.utils`, `trl.kernels`) by this package's kernels, on CPUs as on GPUs."""

from torch import Tensor

from policy_split_kernels.contract import IGNORE_INDEX, TargetOutsideVocabulary, check_targets
from policy_split_kernels.rows import as_rows, check_token_ids

from .several_tokens import several_logprobs
from .statistics import entropy_of, named_statistics


def selective_log_softmax_and_entropy(
    logits: Tensor,  # (..., V)
    index: Tensor,  # (...)
    entropy_requires_grad: bool = True,
    temperature: float = 1.0,
    row_mask: Tensor | None = None,  # (...)
) -> tuple[Tensor, Tensor]:
    """Log-probability of one token and entropy of each row, in nats, in one pass: as `trl.trainer.utils` has it.

    `logprobs_and_entropy(logits, index, temperature=temperature, mask=row_mask)`, the entropy detached where
    `entropy_requires_grad` is False. Returns float32 (float64 for float64 logits) of shape `(...)`.
    Where TRL gives NaN, for logits of -inf, the right number stands here; rows that are masked or whose index is -100
    are 0. `trl.kernels` has this function without `entropy_requires_grad`: pass what follows `index` by name.
    Raises TypeError for an `entropy_requires_grad` that is not a bool, and what `selective_log_softmax` raises.
    """
    if not isinstance(entropy_requires_grad, bool):
        raise TypeError(
            f"entropy_requires_grad must be a bool, got {entropy_requires_grad!r}; "
            "pass temperature by name, as temperature=..."
        )
    logprobs, entropy = named_statistics(
        logits, index, name="index", temperature=temperature, mask=row_mask, mask_name="row_mask"
    )
    return logprobs, entropy if entropy_requires_grad else entropy.detach()


def selective_log_softmax(
    logits: Tensor,  # (..., V)
    index: Tensor,  # (...) or (..., K)
    temperature: float = 1.0,
    row_mask: Tensor | None = None,  # as index
) -> Tensor:
    """Log-probabilities of one token or of K tokens of each row, in nats: as `trl.trainer.utils` has it.

    `torch.log_softmax(logits.float() / temperature, -1).gather(-1, index)`, 0 where `row_mask` is 0 or the index -100.
    Returns float32 (float64 for float64 logits) of the shape of `index`; TRL's fallback rounds to bfloat16.
    K tokens cost what one costs, one read and in backward one read and one write of the logits, and K x K comparisons.
    Raises TypeError or ValueError for wrong dtypes, shapes or devices, IndexError for an index outside the vocabulary
    (on a GPU its log-prob and the gradient of its row become NaN).
    """
    as_rows(logits)
    if not isinstance(index, Tensor) or index.dim() != logits.dim():
        return named_statistics(
            logits, index, name="index", temperature=temperature, mask=row_mask, mask_name="row_mask"
        )[0]
    valid = _several_tokens(logits, index, row_mask)
    return several_logprobs(logits, index.long(), valid, temperature)


def entropy_from_logits(
    logits: Tensor,  # (..., V)
    chunk_size: int = 128,
) -> Tensor:
    """Entropy of each row in nats, differentiable, `(...)`: as `trl.trainer.utils` has it.

    `-(log_p.exp() * log_p).sum(-1)` with `log_p = torch.log_softmax(logits.float(), -1)`; logits of -inf, for which TRL
    gives NaN, add 0. Nothing of the size of the logits is made, so `chunk_size` has no effect.
    """
    return entropy_of(logits)


def _several_tokens(logits: Tensor, index: Tensor, row_mask: Tensor | None) -> Tensor:
    """Which of the K tokens (..., K) of each row count; raises what is wrong with them or with their mask."""
    check_token_ids("index", index)
    if index.shape[:-1] != logits.shape[:-1] or index.shape[-1] == 0:
        raise ValueError(
            f"index has shape {tuple(index.shape)}; expected {tuple(logits.shape[:-1])} or "
            f"{(*logits.shape[:-1], 'K')} with K >= 1 for logits {tuple(logits.shape)}"
        )
    if row_mask is not None and not isinstance(row_mask, Tensor):
        raise TypeError(f"row_mask must be a tensor of the shape of index, got {type(row_mask).__name__}")
    if row_mask is not None and row_mask.shape != index.shape:
        raise ValueError(f"row_mask has shape {tuple(row_mask.shape)}; expected {tuple(index.shape)}, that of index")
    for name, x in (("index", index), ("row_mask", row_mask)):
        if x is not None and x.device != logits.device:
            raise ValueError(f"{name} is on {x.device}, logits are on {logits.device}; expected the same device")
    valid = index != IGNORE_INDEX
    valid = valid if row_mask is None else valid & (row_mask != 0)
    try:
        check_targets(index.flatten(), valid.flatten(), logits.shape[-1])
    except TargetOutsideVocabulary as error:
        raise error.at(index, "index") from None
    return valid
