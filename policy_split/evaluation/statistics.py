"""The statistics of an evaluation: unbiased pass@k, diversity, bootstrap intervals, paired comparisons.

Questions are what is drawn at random: intervals and p-values are over them, each with one number of its own (the mean
over its responses). The p-values are of one comparison each and are not corrected for their number.
"""

import math
from collections.abc import Hashable, Sequence

import numpy as np
import torch
from scipy import stats
from torch import Tensor

LEVEL = 0.95
RESAMPLES = 1_000
SIGN_FLIPS = 10_000
EXACT_UP_TO = 14  # questions: 2**14 sign patterns are about as many as are drawn beyond that
TIE = 1e-9  # of the sum of sizes: sums that differ by less are the same
LARGEST_K = 64


def pass_at_k(correct: Tensor, num_samples: int, k: int) -> Tensor:
    """Unbiased chance that k of a question's responses hold a correct one, from `num_samples` of them.

    1 - C(n - c, k) / C(n, k) = 1 - prod_{i=0}^{k-1} (n - c - i) / (n - i), which is 1 where n - c < k: a factor is 0.

    correct: (...) number of correct responses c, between 0 and n. Returns float64 of the same shape. ValueError: k is
    not in 1..n, or a count not in 0..n. Source: arXiv 2107.03374, equation 1.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"k={k} must be between 1 and the {num_samples} responses per question")
    if correct.numel() and not 0 <= correct.min() <= correct.max() <= num_samples:
        raise ValueError(
            f"counts of correct responses from {correct.min()} to {correct.max()}: expected 0 to {num_samples}"
        )
    drawn = torch.arange(k, dtype=torch.float64, device=correct.device)
    wrong = num_samples - correct.double()[..., None]
    return 1 - ((wrong - drawn) / (num_samples - drawn)).prod(-1)


def expected_distinct(counts: Sequence[int], num_samples: int, k: int) -> float:
    """Unbiased expectation of how many different answers k of a question's responses hold.

    sum_a pass_at_k(c_a, n, k): an answer that c_a of the n responses gave is missed by k of them with the chance
    C(n - c_a, k) / C(n, k). counts: how many responses gave each answer. ValueError: as `pass_at_k`.
    """
    return float(pass_at_k(torch.tensor(list(counts), dtype=torch.float64), num_samples, k).sum())


def sizes_of_k(num_samples: int) -> list[int]:
    """1, 2, 4, ... up to the number of responses and to 64."""
    return [2**power for power in range(LARGEST_K.bit_length()) if 2**power <= num_samples]


def distinct_n(responses: Sequence[Sequence[Hashable]], n: int) -> float:
    """Share of different n-grams among all n-grams of some responses: low where they repeat one another.

    len(set(ngrams)) / len(ngrams), over the responses together; 0 where no response has n tokens. It falls with the
    number of responses and their length: compare only what was drawn alike. Source: arXiv 1510.03055 (distinct-1 and
    distinct-2), which divides by the number of tokens.
    """
    ngrams = [tuple(tokens[start : start + n]) for tokens in responses for start in range(len(tokens) - n + 1)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def bootstrap_interval(values: Tensor, *, seed: int = 0, resamples: int = RESAMPLES) -> tuple[Tensor, Tensor]:
    """Percentile interval (95 %) of the mean over questions: questions drawn with replacement, `resamples` times.

    values (P, M), M numbers of each question; returns (low (M,), high (M,)), float64. All M use the same draws, by
    scipy.stats.bootstrap; one question is its own interval. The global random state is kept. ValueError: no questions,
    or values that are not finite.
    """
    values = _checked(values)
    if len(values) == 1:  # which scipy refuses
        return values[0].clone(), values[0].clone()
    drawn = stats.bootstrap(
        (values.T.numpy(),),
        np.mean,
        axis=-1,
        vectorized=True,
        n_resamples=resamples,
        batch=_batch(values),
        confidence_level=LEVEL,
        method="percentile",
        rng=seed,
    ).confidence_interval
    return torch.as_tensor(drawn.low), torch.as_tensor(drawn.high)


def sign_flip_p_values(differences: Tensor, *, seed: int = 0, flips: int = SIGN_FLIPS) -> Tensor:
    """Two-sided p-values of "the mean difference is 0" by the paired sign-flip permutation test.

    If the two sides are exchangeable, each question's difference d is as likely as -d: p is the share of sign patterns
    s with |sum(s * d)| >= |sum(d)|. All patterns where at most 14 questions have a difference that is not 0; else
    (1 + hits) / (1 + flips) of `flips` drawn ones, which is never below 1 / (1 + flips). By
    scipy.stats.permutation_test, which is asked whether a pattern reaches the observed sum: patterns of equal sums are
    ties in whatever order they were added, whereas scipy would compare the sums themselves to the last digits.

    differences (P, M); returns (M,), float64. The global random state is kept. ValueError: no questions, or values that
    are not finite. Source: Fisher, The Design of Experiments (1935), section 21.
    """
    differences = _checked(differences)
    if len(differences) == 1:  # which scipy refuses: both patterns reach it
        return torch.ones(differences.shape[1], dtype=torch.float64)
    few = (differences != 0).sum(0) <= EXACT_UP_TO
    p_values = torch.empty(len(few), dtype=torch.float64)
    if few.any():
        # a difference of 0 has no sign: the others first
        order = (differences[:, few] == 0).sort(dim=0, stable=True).indices[:EXACT_UP_TO]
        p_values[few] = _share_of_patterns(differences[:, few].gather(0, order), math.inf, seed)
    if not few.all():
        p_values[~few] = _share_of_patterns(differences[:, ~few], flips, seed)
    return p_values


def _share_of_patterns(differences: Tensor, flips: float, seed: int) -> Tensor:
    """The share of sign patterns whose sum is at least as large as the observed one, (M,)."""
    threshold = (differences.sum(0).abs() - TIE * differences.abs().sum(0)).numpy()

    def reaches(values: np.ndarray, axis: int) -> np.ndarray:  # (..., M, P) -> (..., M)
        reached: np.ndarray = np.abs(values.sum(axis)) >= threshold
        return reached.astype(float)

    tested = stats.permutation_test(
        (differences.T.numpy(),),
        reaches,
        permutation_type="samples",
        axis=-1,
        vectorized=True,
        n_resamples=flips,
        batch=_batch(differences),
        alternative="greater",
        rng=seed,
    )
    return torch.as_tensor(tested.pvalue)


def _batch(values: Tensor) -> int:
    """How many resamples of all columns at a time: 32 MiB of numbers."""
    return max(1, 2**22 // values.numel())


def _checked(values: Tensor) -> Tensor:
    values = torch.as_tensor(values, dtype=torch.float64)
    if values.dim() != 2 or not len(values):
        raise ValueError(f"expected (questions, numbers) with at least one question, got {tuple(values.shape)}")
    if not values.isfinite().all():
        question, number = (~values.isfinite()).nonzero()[0].tolist()
        raise ValueError(f"question {question}, number {number} is {values[question, number].item()}: not finite")
    return values
