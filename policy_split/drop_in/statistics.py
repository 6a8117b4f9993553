"""Log-probs and entropy whose errors name the arguments of the function that is stood for."""

import torch
from torch import Tensor

from policy_split_kernels.contract import TargetOutsideVocabulary
from policy_split_kernels.rows import as_rows, inverse_temperature_vector, mask_vector, target_vector
from policy_split_kernels.vocab_parallel import statistics_of_rows


def named_statistics(
    logits: Tensor,  # (..., V)
    targets: Tensor,  # (...)
    *,
    name: str,
    temperature: float = 1.0,
    mask: Tensor | None = None,  # (...)
    mask_name: str = "mask",
) -> tuple[Tensor, Tensor]:
    """`logprobs_and_entropy` of targets that the caller calls `name` and a mask that he calls `mask_name`."""
    rows = as_rows(logits)
    arguments = (
        target_vector(targets, logits, name),
        inverse_temperature_vector(temperature, logits),
        mask_vector(mask, logits, mask_name),
    )
    try:
        logprobs, entropy, _, _ = statistics_of_rows(rows, *arguments, None, None, None)
    except TargetOutsideVocabulary as error:
        raise error.at(targets, name) from None
    return logprobs.view(targets.shape), entropy.view(targets.shape)


def entropy_of(logits: Tensor) -> Tensor:  # (..., V) -> (...)
    """Entropy of each row in nats, differentiable; the target is any token."""
    rows = as_rows(logits)
    any_token = logits.new_zeros(logits.shape[:-1].numel(), dtype=torch.int64)
    _, entropy, _, _ = statistics_of_rows(
        rows, any_token, inverse_temperature_vector(1.0, logits), None, None, None, None
    )
    return entropy.view(logits.shape[:-1])
