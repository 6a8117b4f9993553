"""The statistics of an evaluation: unbiased pass@k, diversity, bootstrap intervals, paired comparisons.

Questions are what is drawn at random: intervals and p-values are over them, each with one number of its own (the mean
over its responses). The p-values are of one comparison each and are not corrected for their number.
"""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

LEVEL = 0.95
RESAMPLES = 1_000
SIGN_FLIPS = 10_000
EXACT_UP_TO = 14  # questions: 2**14 sign patterns are about as many as are drawn beyond that
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

    values (P, M), M numbers of each question; returns (low (M,), high (M,)), float64. All M use the same draws. The
    global random state is kept. ValueError: no questions, or values that are not finite.
    """
    values = _checked(values)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(values), (resamples, len(values)), generator=generator)
    # how often each question was drawn: one product gives the means of every column
    counts = torch.zeros(drawn.shape, dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones((), dtype=torch.float64).expand(drawn.shape)
    )
    means = counts @ values / len(values)
    tail = (1 - LEVEL) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=0)
    return low, high


def sign_flip_p_values(differences: Tensor, *, seed: int = 0, flips: int = SIGN_FLIPS) -> Tensor:
    """Two-sided p-values of "the mean difference is 0" by the paired sign-flip permutation test.

    If the two sides are exchangeable, each question's difference d is as likely as -d: p is the share of sign patterns
    s with |sum(s * d)| >= |sum(d)|. All 2**m patterns where m, the number of questions whose difference is not 0, is at
    most 14; else (1 + hits) / (1 + flips) of `flips` drawn ones, which is never below 1 / (1 + flips).

    differences (P, M); returns (M,), float64. The global random state is kept. ValueError: no questions, or values that
    are not finite. Source: Fisher, The Design of Experiments (1935), section 21.
    """
    differences = _checked(differences)
    return torch.stack([_sign_flip_p_value(column[column != 0], seed, flips) for column in differences.unbind(1)])


def _sign_flip_p_value(differences: Tensor, seed: int, flips: int) -> Tensor:
    count = len(differences)
    # patterns that give the same sum must count as ties, in whatever order they were added
    threshold = differences.sum().abs() - 1e-9 * differences.abs().sum()
    if count <= EXACT_UP_TO:
        patterns = torch.arange(2**count)[:, None] >> torch.arange(count) & 1
        return (_flipped_sums(patterns, differences) >= threshold).double().mean()
    generator = torch.Generator().manual_seed(seed)
    hits, block = 0, max(1, 2**22 // count)  # 32 MiB of signs at a time
    for start in range(0, flips, block):
        patterns = torch.randint(2, (min(block, flips - start), count), generator=generator)
        hits += int((_flipped_sums(patterns, differences) >= threshold).sum())
    return torch.tensor((1 + hits) / (1 + flips), dtype=torch.float64)


def _flipped_sums(patterns: Tensor, differences: Tensor) -> Tensor:
    return ((1 - 2 * patterns).double() @ differences).abs()


def _checked(values: Tensor) -> Tensor:
    values = torch.as_tensor(values, dtype=torch.float64)
    if values.dim() != 2 or not len(values):
        raise ValueError(f"expected (questions, numbers) with at least one question, got {tuple(values.shape)}")
    if not values.isfinite().all():
        question, number = (~values.isfinite()).nonzero()[0].tolist()
        raise ValueError(f"question {question}, number {number} is {values[question, number].item()}: not finite")
    return values
