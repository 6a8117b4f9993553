"""The baselines' advantages, masks and entropy control: numbers worked by hand, edges, orders that must not matter."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policy_split.algorithms import baselines
from policy_split.algorithms.baselines import (
    AdaptiveEntropy,
    clip_cov_mask,
    dynamic_sampling_mask,
    entropy_advantage,
    entropy_driven,
    forking_tokens_mask,
    grpo_advantages,
    kl_cov_mask,
    pass_at_k_advantages,
)

NAN = math.nan


def float64(values):
    return torch.tensor(values, dtype=torch.float64)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=4e-6)  # the 1e-6 beside a std of .5


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_grpo_literal():
    """0 0 0 4: mean 1, squares 1 1 1 9, std sqrt(12 / 3) = 2. 1 1 1 0: mean .75, std sqrt(.75 / 3) = .5."""
    rewards = float64([[0, 0, 0, 4], [1, 1, 1, 0], [0.1, 0.1, 0.1, 0.1]])
    close(grpo_advantages(rewards), float64([[-0.5, -0.5, -0.5, 1.5], [0.5, 0.5, 0.5, -1.5], [0, 0, 0, 0]]))
    assert (grpo_advantages(rewards)[2] == 0).all()  # the mean of three times 0.1 is not 0.1
    assert grpo_advantages(torch.tensor([[1, 0]])).dtype == torch.float32


def test_pass_at_k_literal():
    """n = 4, k = 2, C(4, 2) = 6.

    c = 2: 1 - rho = 1/6, s = sqrt(5)/6: A+ = 1/sqrt 5; A- = (1/6 - C(1,1)/C(3,1)) / s = -1/sqrt 5.
    c = 1: 1 - rho = C(3,2)/6 = 1/2, s = 1/2: A+ = 1; A- = (1/2 - C(2,1)/3) / (1/2) = -1/3.
    c = 3: every pair has a correct one, rho = 1.
    """
    root = 1 / math.sqrt(5)
    rewards = float64([[1, 0, 1, 0], [0, 0, 0, 1], [1, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]])
    zero, third = [0.0] * 4, -1 / 3
    expected = [[root, -root, root, -root], [third, third, third, 1.0], zero, zero, zero]
    torch.testing.assert_close(pass_at_k_advantages(rewards, 2), float64(expected), rtol=1e-12, atol=0)


def test_pass_at_1_is_grpo_with_the_biased_deviation():
    rewards = float64([[1, 0, 0, 0, 1], [1, 1, 1, 1, 0]])
    expected = (rewards - rewards.mean(1, keepdim=True)) / rewards.std(1, keepdim=True, correction=0)
    torch.testing.assert_close(pass_at_k_advantages(rewards, 1), expected)


@pytest.mark.parametrize(("n", "k"), [(4, 2), (6, 4), (7, 3), (5, 5)])
def test_pass_at_k_is_the_mean_over_all_subgroups(n, k):
    """Each subgroup's reward is its best one; a response's advantage is the mean over those that it is in."""
    for c in range(n + 1):
        rewards = float64([[1.0] * c + [0.0] * (n - c)])
        groups = torch.combinations(torch.arange(n), k)
        passed = rewards[0, groups].amax(1)
        deviation = passed.std(correction=0)
        expected = torch.zeros(1, n, dtype=torch.float64)
        if deviation > 0:
            for i in range(n):
                member = (groups == i).any(1)
                expected[0, i] = ((passed[member] - passed.mean()) / deviation).mean()
        torch.testing.assert_close(pass_at_k_advantages(rewards, k), expected)


def test_correct_reward():
    rewards = torch.tensor([[0.5, 2.0, 0.9], [0.0, 0.2, 0.9], [1.0, 3.0, 1.0]])
    assert dynamic_sampling_mask(rewards).tolist() == [True, False, False]
    assert dynamic_sampling_mask(rewards, correct_reward=0.9).tolist() == [True, True, False]
    torch.testing.assert_close(pass_at_k_advantages(rewards, 2)[0], pass_at_k_advantages(rewards, 2, 0.95)[0])
    assert pass_at_k_advantages(rewards, 2, 0.1)[1].tolist() == [0.0, 0.0, 0.0]  # 2 of 3: no pair fails


def test_entropy_advantage_literal():
    """.4 H = .4 .4 .4 .04 0 .4, |A| / 2 = .5 .1 .5 .5 .5 0."""
    advantages = float64([[1.0, 0.2, -1.0], [-1.0, 1.0, 0.0]])
    entropy = float64([[1.0, 1.0, 1.0], [0.1, 0.0, 1.0]])
    close(entropy_advantage(advantages, entropy), float64([[1.4, 0.3, -0.6], [-0.96, 1.0, 0.0]]))
    close(entropy_advantage(advantages, entropy, alpha=2.0, kappa=4.0)[0], float64([1.25, 0.25, -0.75]))
    assert entropy_advantage(advantages, 0 * entropy).equal(advantages)


def test_entropy_driven_literal():
    """Row means .5, 1.5, none, 1: their mean is 1. Factors 2, 2/3 and 1."""
    entropy = float64([[0.5, 0.5], [1.5, NAN], [NAN, NAN], [0.5, 1.5]])
    mask = torch.tensor([[1, 1], [1, 0], [0, 0], [1, 1]])
    advantages = float64([[1.0, 2.0], [-3.0, NAN], [NAN, 1.0], [1.0, -1.0]])
    expected = float64([[2.0, 4.0], [-2.0, 0.0], [0.0, 0.0], [1.0, -1.0]])
    close(entropy_driven(advantages, entropy, mask), expected)
    expected[:2] = float64([[1.25, 2.5], [-2.4, 0.0]])
    close(entropy_driven(advantages, entropy, mask, limit=1.25), expected)


def test_entropy_driven_without_entropy():
    advantages, mask = float64([[1.0], [-1.0]]), torch.ones(2, 1)
    assert entropy_driven(advantages, float64([[0.0], [0.0]]), mask).equal(advantages)
    assert entropy_driven(advantages, float64([[0.0], [2.0]]), mask).equal(float64([[1.0], [-0.5]]))
    assert entropy_driven(advantages, advantages.abs(), 0 * mask).equal(0 * advantages)


def test_forking_tokens_literal():
    """Entropies 0 to .5: the 80 % quantile is at place 4 = .8 * 5; the 75 % one at 3.75, so .375."""
    entropy = float64([[0.3, 0.1, NAN], [0.5, 0.4, 9.0], [0.0, 0.2, NAN]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 0], [1, 1, 0]])
    expected = [[False] * 3, [True, True, False], [False] * 3]
    assert forking_tokens_mask(entropy, mask).tolist() == expected
    assert forking_tokens_mask(entropy, mask, ratio=0.25).tolist() == expected
    assert forking_tokens_mask(entropy, mask, ratio=1.0).equal(mask != 0)
    # .6 of 5 is place 3, whose equals train whatever their order
    tied = float64([[0.1, 0.3, 0.3], [0.0, 0.3, 0.9]])
    assert forking_tokens_mask(tied, torch.ones(2, 3), ratio=0.4).tolist() == [[False, True, True], [False, True, True]]


def test_forking_tokens_edges():
    ones = torch.ones(2, 3)
    assert forking_tokens_mask(torch.zeros(2, 3), ones).all()  # all equal the quantile
    assert not forking_tokens_mask(ones, 0 * ones).any()
    assert forking_tokens_mask(torch.zeros(2, 0), torch.zeros(2, 0)).shape == (2, 0)
    one = torch.tensor([[0, 1, 0]])
    assert forking_tokens_mask(torch.tensor([[NAN, 0.5, NAN]]), one).equal(one != 0)


# A:    2   2  -2  -2    0   0   mean 0
# logp: 0  -3  -1  -4.5 -2 -1.5  mean -2
# cov:  4  -2  -2   5    0   0
ADVANTAGES = float64([[2.0, 2.0, NAN], [-2.0, -2.0, NAN], [0.0, 0.0, 7.0]])
LOGPROBS = float64([[0.0, -3.0, 5.0], [-1.0, -4.5, NAN], [-2.0, -1.5, NAN]])
MASK = torch.tensor([[1, 1, 0], [1, 1, 0], [1, 1, 0]])
TOP, SECOND = (1, 1), (0, 0)


def places(chosen):
    return {tuple(place) for place in chosen.nonzero().tolist()}


def test_kl_cov_literal():
    assert places(kl_cov_mask(ADVANTAGES, LOGPROBS, MASK)) == {TOP}  # at least one
    assert places(kl_cov_mask(ADVANTAGES, LOGPROBS, MASK, ratio=0.4)) == {TOP, SECOND}  # int(2.4)
    assert places(kl_cov_mask(ADVANTAGES, LOGPROBS, MASK, ratio=0.5)) == {TOP, SECOND, (2, 0)}  # the first of two 0
    assert kl_cov_mask(ADVANTAGES, LOGPROBS, MASK, ratio=1.0).equal(MASK != 0)


def test_clip_cov_literal():
    def chosen(seed=0, **options):
        return places(clip_cov_mask(ADVANTAGES, LOGPROBS, MASK, generator(seed), **options))

    assert chosen() == {SECOND}  # 5 is not below 5, and the others are not above 1
    assert chosen(ratio=1.0) == {SECOND}
    assert chosen(ratio=1.0, high=5.5) == {SECOND, TOP}
    assert chosen(low=4.0, high=5.0) == set()
    drawn = [frozenset(chosen(seed, high=5.5)) for seed in range(40)]
    assert drawn == [frozenset(chosen(seed, high=5.5)) for seed in range(40)]
    assert set(drawn) == {frozenset({SECOND}), frozenset({TOP})}
    assert 8 <= drawn.count(frozenset({TOP})) <= 32  # a fair coin leaves this range once in 5,000


@pytest.mark.parametrize(
    "function", [kl_cov_mask, lambda *tensors: clip_cov_mask(*tensors, generator(), low=-9.0, high=9.0)]
)
def test_covariance_edges(function):
    assert not function(ADVANTAGES, LOGPROBS, 0 * MASK).any()
    assert function(ADVANTAGES[:, :0], LOGPROBS[:, :0], MASK[:, :0]).shape == (3, 0)
    one = torch.zeros_like(MASK)
    one[1, 0] = 1
    assert places(function(ADVANTAGES, LOGPROBS, one)) == {(1, 0)}  # its covariance is 0


def test_clip_cov_draws_without_favour():
    """2,000 candidates, a tenth of them drawn: each half of them has its share, and exactly as many as asked."""
    advantages = torch.tensor([1.0, -1.0]).repeat(40, 50)
    logprobs = advantages * 2  # covariance 2 everywhere
    chosen = clip_cov_mask(advantages, logprobs, torch.ones(40, 100), generator(3), ratio=0.05)
    assert chosen.sum() == 200
    assert 70 <= chosen[:20].sum() <= 130  # 100 +- 4 deviations of 7


def test_adaptive_entropy_literal():
    control = AdaptiveEntropy(target=0.5, delta=0.25, largest=0.5)
    assert [control.update(h) for h in (0.4, 0.3, 0.0, 0.5)] == [0.25, 0.5, 0.5, 0.5]
    assert control.update(0.6) == 0.0  # above the target it is not applied, but kept
    assert control.state_dict() == {"coefficient": 0.25}
    resumed = AdaptiveEntropy(target=0.5, delta=0.25, largest=0.5)
    resumed.load_state_dict(control.state_dict())
    assert [x.update(0.1) for x in (control, resumed)] == [0.5, 0.5]
    assert [control.update(0.9) for _ in range(4)] == [0.0] * 4
    assert control.update(0.4) == 0.25  # it did not go below 0
    assert control.update(0.5) == 0.25  # at the target it stays, and is applied


def test_adaptive_entropy_errors():
    with pytest.raises(ValueError, match=r"delta=-1 must be a number in \[0, inf\)"):
        AdaptiveEntropy(delta=-1)
    control = AdaptiveEntropy()
    with pytest.raises(ValueError, match="mean_entropy is nan"):
        control.update(NAN)
    with pytest.raises(ValueError, match="coefficient=nan"):
        control.load_state_dict({"coefficient": NAN})
    assert control.coefficient == 0.0


TOKENS = torch.zeros(2, 3)
WRONG = [
    (grpo_advantages, (torch.zeros(4),), {}, r"rewards has shape \(4,\), expected \(P, G\)"),
    (grpo_advantages, (torch.zeros(4, 1),), {}, r"rewards has shape \(4, 1\)"),
    (grpo_advantages, (torch.tensor([[1.0, NAN]]),), {}, r"rewards\[0, 1\] is nan, expected a finite number"),
    (dynamic_sampling_mask, (torch.tensor([[1.0, math.inf]]),), {}, r"rewards\[0, 1\] is inf"),
    (pass_at_k_advantages, (torch.zeros(2, 3), 4), {}, "k=4 must be an integer from 1 to the 3 responses"),
    (pass_at_k_advantages, (torch.zeros(2, 3), 0), {}, "k=0 must be"),
    (pass_at_k_advantages, (torch.zeros(2, 3), 1.5), {}, "k=1.5 must be"),
    (entropy_advantage, (TOKENS, TOKENS[:1]), {}, r"got advantages \(2, 3\), entropy \(1, 3\)"),
    (entropy_advantage, (TOKENS, TOKENS), {"alpha": -0.1}, "alpha=-0.1 must be"),
    (entropy_advantage, (TOKENS, TOKENS), {"kappa": 0.0}, "kappa=0.0 must be a number above 0"),
    (entropy_driven, (TOKENS, TOKENS, TOKENS[:, :2]), {}, r"got mask \(2, 2\)"),
    (entropy_driven, (TOKENS, TOKENS, TOKENS), {"limit": 0.5}, "limit=0.5 must be"),
    (entropy_driven, (TOKENS, TOKENS + NAN, TOKENS + 1), {}, r"entropy\[0, 0\] is nan"),
    (forking_tokens_mask, (TOKENS[0], TOKENS[0]), {}, r"expected one shape \(P\*G, T\), got mask \(3,\)"),
    (forking_tokens_mask, (TOKENS, TOKENS), {"ratio": 0}, r"ratio=0 must be a number in \(0, 1\]"),
    (forking_tokens_mask, (TOKENS, TOKENS), {"ratio": 1.1}, "ratio=1.1 must be"),
    (kl_cov_mask, (TOKENS, TOKENS, TOKENS), {"ratio": NAN}, "ratio=nan must be"),
    (kl_cov_mask, (TOKENS, TOKENS - math.inf, TOKENS + 1), {}, r"logprobs\[0, 0\] is -inf"),
    (clip_cov_mask, (TOKENS, TOKENS, TOKENS, None), {"low": 5.0}, "low=5.0 must be below high=5.0"),
]


@pytest.mark.parametrize(("function", "arguments", "options", "message"), WRONG)
def test_errors(function, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments, **options)


QUARTERS = st.integers(-8, 8).map(lambda x: x / 4)  # many ties; their sums are exact in any order


@st.composite
def batches(draw):
    """rewards (P, G), advantages, entropy, logprobs, mask (P*G, T), a permutation of the rows and one of the groups."""
    p, g, t = draw(st.integers(1, 3)), draw(st.integers(2, 4)), draw(st.integers(1, 4))

    def tokens(values):
        return float64(draw(st.lists(values, min_size=p * g * t, max_size=p * g * t))).view(p * g, t)

    rewards = float64(draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=p * g, max_size=p * g))).view(p, g)
    mask = tokens(st.booleans()) != 0
    rows, members = (torch.tensor(draw(st.permutations(range(n)))) for n in (p * g, g))
    return rewards, tokens(QUARTERS), tokens(QUARTERS).abs(), -tokens(QUARTERS).abs(), mask, rows, members


@settings(max_examples=60, deadline=None)
@given(batches())
def test_the_order_of_responses_does_not_matter(batch):
    rewards, advantages, entropy, logprobs, mask, rows, members = batch
    for function in (grpo_advantages, lambda r: pass_at_k_advantages(r, 2)):
        torch.testing.assert_close(function(rewards[:, members]), function(rewards)[:, members])
    assert dynamic_sampling_mask(rewards[:, members]).equal(dynamic_sampling_mask(rewards))
    driven = entropy_driven(advantages, entropy, mask)
    torch.testing.assert_close(entropy_driven(advantages[rows], entropy[rows], mask[rows]), driven[rows])
    forking = forking_tokens_mask(entropy, mask)
    assert forking_tokens_mask(entropy[rows], mask[rows]).equal(forking[rows])
    assert forking.sum() >= 0.2 * mask.sum()
    # which of equal covariances is taken depends on the order, which covariances are taken does not
    covariances = baselines._covariances(advantages, logprobs, mask, 0.3)[0]
    taken = covariances[kl_cov_mask(advantages, logprobs, mask, 0.3)]
    moved = kl_cov_mask(advantages[rows], logprobs[rows], mask[rows], 0.3)
    torch.testing.assert_close(covariances[rows][moved].sort().values, taken.sort().values)
    assert len(taken) == (max(1, int(0.3 * mask.sum())) if mask.any() else 0)


@settings(max_examples=40, deadline=None)
@given(batches())
def test_what_is_behind_the_mask_is_not_read(batch):
    _, advantages, entropy, logprobs, mask, _, _ = batch
    a, h, l = (torch.where(mask, x, NAN) for x in (advantages, entropy, logprobs))
    assert entropy_driven(a, h, mask).equal(entropy_driven(advantages, entropy, mask))
    assert forking_tokens_mask(h, mask).equal(forking_tokens_mask(entropy, mask))
    assert kl_cov_mask(a, l, mask, 0.3).equal(kl_cov_mask(advantages, logprobs, mask, 0.3))
    options = {"low": -1.0, "high": 2.0, "ratio": 0.3}
    drawn = clip_cov_mask(a, l, mask, generator(), **options)
    assert drawn.equal(clip_cov_mask(advantages, logprobs, mask, generator(), **options))
    assert not (drawn & ~mask).any()
