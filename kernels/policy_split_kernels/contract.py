"""What every column computes on and gives back: shapes, the vectors of a row, targets that mean more than an id.

The columns are `reference` (plain PyTorch: the specification), `cpu` (C++) and `gpu` (Triton). In each, `logits` and
`divergence` define functions of the same names and signatures. All of them take

- `logits (B, T, V)`: any strides over B and T, the vocabulary contiguous; N = B * T rows, row n = (n // T, n % T);
- per-row vectors `(N,)`, contiguous, in the statistics dtype (float64 for float64 logits, float32 otherwise);
- `targets (N,)` int64, `mask (N,)` bool or None, `inverse_temperature (1,)` or `(N,)`.

The distribution of a row is softmax(x * inverse_temperature), where x is the logit z, or softcap * tanh(z / softcap),
and -inf wherever `keep_mask (B, T, V)` bool is False. An infinite logit stays infinite under a softcap.
A row whose mask is False or whose target is IGNORE_INDEX is not read: its outputs and its gradient are 0.
A row whose target is ELSEWHERE (in a part of the vocabulary that another process holds, `vocab_parallel`) is read; its
log-prob is 0, also in `dual_mode_loss`, which is never called so, and no element of its gradient is that of a target.
Any other target outside the vocabulary raises IndexError on a CPU and makes its row NaN on a GPU (a check would
synchronise).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .watchers import can_ask

IGNORE_INDEX = -100
ELSEWHERE = torch.iinfo(torch.int64).min
SURROGATES = ("clip", "cispo", "sapo")  # of the policy gradient: what a kernel is told is the position in this list


class RowStatistics(NamedTuple):
    logprobs: Tensor  # (N,) log softmax(logits / temperature)[target], nats
    entropy: Tensor  # (N,) of softmax(logits / temperature), nats
    row_max: Tensor  # (N,) maximum of x
    log_sum: Tensor  # (N,) log sum exp((x - row_max) / temperature); apart from row_max it keeps its precision


class LossArguments(NamedTuple):
    """What the policy loss takes beside the distribution of its rows, in the order of `dual_mode_loss`."""

    advantages: Tensor  # (N,)
    old_logprobs: Tensor | None  # (N,) nats
    ref_logprobs: Tensor | None  # (N,) nats
    sampler_logprobs: Tensor | None  # (N,) nats
    weights: Tensor  # (N,)
    entropy_coef: Tensor  # (N,)
    kl_coef: Tensor  # (N,)
    surrogate: str  # of SURROGATES
    clip_low: float
    clip_high: float
    clip_delta: float | None
    sampler_cap: float
    sapo_temperature: Sequence[float]  # of rows whose advantage is above 0, and of the others
    use_bias_correction_kl: bool
    kl_cap: float | None


class LossRows(NamedTuple):
    losses: Tensor  # (N,) weighted loss of each row
    logprobs: Tensor  # (N,)
    entropy: Tensor  # (N,)
    kl: Tensor  # (N,) estimate of the KL from the reference policy, 0 without one
    clipped: Tensor  # (N,) bool: the ratio is beyond the bound to which the advantage pushes it, and the clip acted
    row_max: Tensor  # (N,)
    log_sum: Tensor  # (N,)
    grad_logprobs: Tensor  # (N,) d losses / d logprobs
    grad_entropy: Tensor  # (N,) d losses / d entropy


class DivergenceRows(NamedTuple):
    kl_ab: Tensor  # (N,) sum of p_a * (log p_a - log p_b), nats
    kl_ba: Tensor  # (N,)
    entropy_a: Tensor  # (N,) nats
    entropy_b: Tensor  # (N,)
    max_a: Tensor  # (N,) as row_max and log_sum of RowStatistics
    log_sum_a: Tensor  # (N,)
    max_b: Tensor  # (N,)
    log_sum_b: Tensor  # (N,)


class MixtureRows(NamedTuple):
    divergence: Tensor  # (N,) (1 - beta) * kl_a + beta * kl_b, nats
    kl_a: Tensor  # (N,) of a row of a from the mixture (1 - beta) * p_a + beta * p_b
    kl_b: Tensor  # (N,)
    max_a: Tensor  # (N,) as row_max and log_sum of RowStatistics
    log_sum_a: Tensor  # (N,)
    max_b: Tensor  # (N,)
    log_sum_b: Tensor  # (N,)


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def valid_rows(targets: Tensor, mask: Tensor | None) -> Tensor:
    valid = targets != IGNORE_INDEX
    return valid if mask is None else valid & mask


class TargetOutsideVocabulary(IndexError):
    """What a column says of `row` of the targets (N,); who laid them out says it of the caller's tensor, by `at`."""

    row: int
    target: int
    vocabulary: int

    def at(self, targets: Tensor, name: str = "targets") -> "TargetOutsideVocabulary":
        """The same of the tensor that the caller has, of which the targets were the flattened numbers."""
        index: list[int] = []
        rest = self.row
        for size in reversed(targets.shape):
            rest, place = divmod(rest, size)
            index.insert(0, place)
        where = f"{name}{index}" if index else name
        return target_out_of_range(self.row, int(targets[tuple(index)]), self.vocabulary, where)


def target_out_of_range(row: int, target: int, vocabulary: int, where: str | None = None) -> TargetOutsideVocabulary:
    error = TargetOutsideVocabulary(
        f"{where or f'targets[{row}]'} = {target} is outside the vocabulary of {vocabulary}; "
        f"expected 0 <= target < {vocabulary}, or {IGNORE_INDEX} for a row to be ignored"
    )
    error.row, error.target, error.vocabulary = row, target, vocabulary
    return error


def check_targets(targets: Tensor, valid: Tensor, vocabulary: int) -> None:
    """Raises TargetOutsideVocabulary for the first valid row whose target is no token, on a CPU: it reads the rows."""
    if not can_ask(targets):
        return
    bad = valid & ((targets < 0) | (targets >= vocabulary))
    if bad.any():
        row = int(bad.nonzero()[0])
        raise target_out_of_range(row, int(targets[row]), vocabulary)
