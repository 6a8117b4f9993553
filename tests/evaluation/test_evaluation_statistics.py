"""The statistics against numbers worked out by hand, by enumeration and by simulation."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from policy_split.evaluation.statistics import (
    bootstrap_interval,
    distinct_n,
    expected_distinct,
    pass_at_k,
    sign_flip_p_values,
    sizes_of_k,
)


@pytest.mark.parametrize(
    ("correct", "n", "k", "expected"),
    [
        (2, 4, 2, 5 / 6),  # 1 - C(2,2) / C(4,2)
        (1, 4, 1, 1 / 4),
        (1, 4, 3, 3 / 4),
        (0, 4, 4, 0.0),
        (3, 4, 2, 1.0),  # fewer wrong ones than are drawn
        (4, 4, 1, 1.0),
        (1, 64, 64, 1.0),
        (3, 10, 5, 11 / 12),  # 1 - C(7,5) / C(10,5) = 1 - 21/252
    ],
)
def test_pass_at_k_literal(correct, n, k, expected):
    assert pass_at_k(torch.tensor(correct), n, k).item() == pytest.approx(expected, abs=1e-15)


@given(st.integers(1, 70).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_ratio_of_binomials(case):
    n, correct, k = case
    expected = 1 - math.comb(n - correct, k) / math.comb(n, k)
    assert pass_at_k(torch.tensor([correct]), n, k).item() == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_at_k_is_unbiased(k):
    """Its expectation over every outcome of 5 responses is the chance of one right answer in k."""
    n, chance, expectation = 5, 0.3, 0.0
    for outcome in itertools.product((0, 1), repeat=n):
        probability = math.prod(chance if right else 1 - chance for right in outcome)
        expectation += probability * pass_at_k(torch.tensor(sum(outcome)), n, k).item()
    assert expectation == pytest.approx(1 - (1 - chance) ** k, abs=1e-12)


@given(st.lists(st.sampled_from("abcd-"), min_size=1, max_size=8), st.data())
def test_expected_distinct_is_the_mean_over_every_choice(answers, data):
    k = data.draw(st.integers(1, len(answers)))
    counts = [answers.count(answer) for answer in set(answers) - {"-"}]  # "-" is a wrong one
    choices = [len(set(few) - {"-"}) for few in itertools.combinations(answers, k)]
    assert expected_distinct(counts, len(answers), k) == pytest.approx(sum(choices) / len(choices), abs=1e-12)


def test_pass_at_k_refuses_what_cannot_be():
    for k in (0, 5):
        with pytest.raises(ValueError, match=f"k={k} must be between 1 and the 4"):
            pass_at_k(torch.tensor([1]), 4, k)
    for count in (-1, 5):
        with pytest.raises(ValueError, match="expected 0 to 4"):
            pass_at_k(torch.tensor([2, count]), 4, 2)
    assert pass_at_k(torch.zeros(0), 4, 2).shape == (0,)


def test_sizes_of_k():
    assert [sizes_of_k(n) for n in (1, 6, 64, 200)] == [[1], [1, 2, 4], *[[1, 2, 4, 8, 16, 32, 64]] * 2]


def test_distinct_n():
    responses = ["aab", "ab"]  # a a b, a b
    assert distinct_n(responses, 1) == 2 / 5
    assert distinct_n(responses, 2) == 2 / 3  # aa ab ab
    assert distinct_n(responses, 3) == 1.0
    assert distinct_n(responses, 4) == 0.0
    assert distinct_n([], 1) == distinct_n([[], []], 1) == 0.0
    # no n-gram reaches from one response into the next
    assert distinct_n([[1, 2], [3, 4]], 2) == 1.0


def test_bootstrap_interval_of_what_does_not_vary():
    low, high = bootstrap_interval(torch.tensor([[1.0, -2.0]] * 7))
    assert low.tolist() == high.tolist() == [1.0, -2.0]


def test_bootstrap_interval_is_that_of_every_resample():
    """Three questions have 27 resamples: the interval of many draws is theirs."""
    values = [0.0, 1.0, 5.0]
    means = sorted(sum(drawn) / 3 for drawn in itertools.product(values, repeat=3))
    low, high = bootstrap_interval(torch.tensor(values)[:, None], resamples=20_000)
    # the lowest and the highest of 27 have a chance of 3.7 % each, more than the 2.5 % of a tail
    assert (low.item(), high.item()) == pytest.approx((means[0], means[-1]))


def test_bootstrap_interval_covers_the_mean():
    """95 % intervals of 400 samples of 60 skewed numbers: the true mean is in about 93 % of them."""
    samples = torch.empty(60, 400, dtype=torch.float64).exponential_(generator=torch.Generator().manual_seed(1))
    low, high = bootstrap_interval(samples)
    assert 0.88 <= ((low <= 1) & (high >= 1)).double().mean() <= 0.98
    # about 2 * 1.96 standard errors wide, a little less for 60 numbers
    assert (high - low).mean().item() == pytest.approx(2 * 1.96 / 60**0.5, rel=0.1)


def test_repeatable_and_alone():
    values = torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    state = torch.get_rng_state()
    first, again, other = (bootstrap_interval(values, seed=seed)[0] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    p_values = [sign_flip_p_values(values + 0.2, seed=seed) for seed in (3, 3, 4)]
    assert torch.equal(p_values[0], p_values[1])
    assert not torch.equal(p_values[0], p_values[2])
    assert torch.equal(state, torch.get_rng_state())
    # a column's p-value does not depend on the others
    assert torch.equal(sign_flip_p_values(values[:, :1] + 0.2, seed=3), p_values[0][:1])


def test_one_question_says_nothing_of_others():
    low, high = bootstrap_interval(torch.tensor([[0.25, -3.0]]))
    assert low.tolist() == high.tolist() == [0.25, -3.0]
    assert sign_flip_p_values(torch.tensor([[0.25, 0.0]])).tolist() == [1.0, 1.0]


@given(st.lists(st.sampled_from([-2.0, -1.0, -0.1, 0.0, 0.1, 0.2, 0.3, 1.5]), min_size=1, max_size=8))
def test_few_questions_are_enumerated(differences):
    observed = abs(math.fsum(differences))
    sums = [
        abs(math.fsum(sign * difference for sign, difference in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    expected = sum(total >= observed - 1e-9 for total in sums) / len(sums)
    p_value = sign_flip_p_values(torch.tensor(differences, dtype=torch.float64)[:, None])
    assert p_value.item() == pytest.approx(expected, abs=1e-12)


def test_p_values_by_hand():
    differences = torch.tensor([[1.0, 1.0, 0.0], [2.0, -1.0, 0.0], [3.0, 0.0, 0.0]])
    # all of one sign: 2 of 8 patterns; 1 and -1 cancel: each is at least 0; nothing differs: 1
    assert sign_flip_p_values(differences).tolist() == [0.25, 1.0, 1.0]


def test_drawn_flips_are_near_the_exact_test():
    """14 questions are enumerated, 20 drawn: the same test of the same numbers, padded with ones too small to count."""
    some = torch.tensor([0.9, -0.3, 0.8, 0.4, -0.7, 0.6, 0.5, -0.1, 0.2, 1.1, -0.6, 0.75, 0.35, -0.45])
    padded = torch.cat((some, torch.full((6,), 1e-7)))
    exact, drawn = (sign_flip_p_values(values[:, None]).item() for values in (some, padded))
    assert 0.05 < exact < 0.2
    assert drawn == pytest.approx(exact, abs=4 * (exact * (1 - exact) / 10_000) ** 0.5 + 1e-3)
    # what is never reached is not said to be impossible
    assert sign_flip_p_values(torch.ones(200, 1)).item() == 1 / 10_001


def test_few_differences_among_many_questions_are_enumerated():
    """2 of 2**5 patterns, and 14 of one sign; a column of many differences beside them changes neither."""
    differences = torch.zeros(300, 3, dtype=torch.float64)
    differences[[3, 50, 51, 200, 299], 0] = torch.tensor([0.1, 0.3, 0.2, 0.7, 0.1], dtype=torch.float64)
    differences[:14, 1] = -0.3
    differences[:, 2] = torch.linspace(-1, 1.2, 300, dtype=torch.float64)
    p_values = sign_flip_p_values(differences, seed=5)
    assert p_values[:2].tolist() == [2 / 2**5, 2 / 2**14]
    assert [sign_flip_p_values(column[:, None], seed=5).item() for column in differences.T] == p_values.tolist()


def test_equal_sums_of_drawn_patterns_are_ties():
    """12 of 20 differences of 0.1 are positive: every pattern with 12 or more, or 8 or fewer, reaches the sum."""
    differences = torch.tensor([0.1] * 12 + [-0.1] * 8, dtype=torch.float64)[torch.arange(20) * 9 % 20, None]
    exact = sum(math.comb(20, positive) for positive in range(21) if abs(2 * positive - 20) >= 4) / 2**20
    assert 0.5 < exact < 0.51
    assert sign_flip_p_values(differences).item() == pytest.approx(exact, abs=0.02)


def test_p_values_are_uniform_where_nothing_differs():
    differences = torch.randn(12, 500, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    p_values = sign_flip_p_values(differences)
    for level in (0.05, 0.2, 0.5):
        assert (p_values <= level).double().mean().item() == pytest.approx(level, abs=0.07)


@pytest.mark.parametrize("function", [bootstrap_interval, sign_flip_p_values])
def test_what_is_not_there_is_refused(function):
    for values in (torch.zeros(0, 3), torch.zeros(3)):
        with pytest.raises(ValueError, match="at least one question"):
            function(values)
    with pytest.raises(ValueError, match="question 1, number 0 is nan"):
        function(torch.tensor([[0.0], [math.nan]]))
