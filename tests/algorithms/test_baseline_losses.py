"""The baselines' losses of one token: values and gradients by hand, then on an LM head."""

import math

import pytest
import torch

from policy_split.algorithms.baseline_losses import ce_gppo_loss, clip_cov_loss, clipped_loss, kl_cov_loss
from policy_split.losses.dual_mode import dual_mode_loss
from policy_split.losses.weights import token_weights
from policy_split_kernels.linear import linear_token_loss
from policy_split_kernels.logprobs import logprobs_and_entropy

# rho   0.5  0.5   1    1   1.5  1.5   the clip range is .8 to 1.25
# A      2   -2    3   -3    2   -2
# clipped     x               x
RHO = [0.5, 0.5, 1.0, 1.0, 1.5, 1.5]
A = [2.0, -2.0, 3.0, -3.0, 2.0, -2.0]
MARKED = [True, True, False, False, True, False]
CLIP = {"clip_low": 0.2, "clip_high": 0.25}
LN2, LN15 = math.log(2), math.log(1.5)


def float64(values):
    return torch.tensor(values, dtype=torch.float64)


ADVANTAGES, OLD = float64(A), float64([-1.0, -2.0, -0.5, -3.0, -1.5, -2.5])
MARKS = torch.tensor(MARKED)
HAND = [
    # (name, loss function, losses, their derivatives by the log-prob)
    (
        "clipped",
        clipped_loss(ADVANTAGES, OLD, **CLIP),
        [-1.0, 1.6, -3.0, 3.0, -2.5, 3.0],
        [-1.0, 0.0, -3.0, 3.0, 0.0, 3.0],
    ),
    (
        "clip_cov",
        clip_cov_loss(ADVANTAGES, OLD, MARKS, **CLIP),
        [0.0, 0.0, -3.0, 3.0, 0.0, 3.0],
        [0.0, 0.0, -3.0, 3.0, 0.0, 3.0],
    ),
    (  # -rho A + .5 |log rho| of the marked
        "kl_cov",
        kl_cov_loss(ADVANTAGES, OLD, MARKS, c=0.5),
        [-1 + LN2 / 2, 1 + LN2 / 2, -3.0, 3.0, -3 + LN15 / 2, 3.0],
        [-1.5, 0.5, -3.0, 3.0, -2.5, 3.0],
    ),
    (  # clipped: -.5 * .8 * -2 = .8, -1 * 1.25 * 2 = -2.5, value and derivative
        "ce_gppo",
        ce_gppo_loss(ADVANTAGES, OLD, **CLIP),
        [-1.0, 0.8, -3.0, 3.0, -2.5, 3.0],
        [-1.0, 0.8, -3.0, 3.0, -2.5, 3.0],
    ),
    (
        "ce_gppo, other factors",
        ce_gppo_loss(ADVANTAGES, OLD, b1=0.25, b2=0.2, **CLIP),
        [-1.0, 0.4, -3.0, 3.0, -0.5, 3.0],
        [-1.0, 0.4, -3.0, 3.0, -0.5, 3.0],
    ),
]
BY_NAME = pytest.mark.parametrize(("loss_fn", "losses", "slopes"), [x[1:] for x in HAND], ids=[x[0] for x in HAND])


def value_and_slope(loss_fn, logprobs, index):
    logprobs, entropy = logprobs.clone().requires_grad_(), torch.zeros_like(logprobs)
    losses = loss_fn(logprobs, entropy, index)
    (slope,) = torch.autograd.grad(losses.sum(), logprobs)
    return losses.detach(), slope


@BY_NAME
def test_literal(loss_fn, losses, slopes):
    logprobs = OLD + float64(RHO).log()
    logprobs[2:4] = OLD[2:4]  # rho of exactly 1
    actual = value_and_slope(loss_fn, logprobs, torch.arange(6))
    torch.testing.assert_close(actual, (float64(losses), float64(slopes)), rtol=1e-12, atol=1e-12)
    index = torch.tensor([4, 1, 3])  # a chunk, and out of order
    actual = value_and_slope(loss_fn, logprobs[index], index)
    torch.testing.assert_close(actual, (float64(losses)[index], float64(slopes)[index]), rtol=1e-12, atol=1e-12)
    assert loss_fn(logprobs[:0], logprobs[:0], index[:0]).shape == (0,)


@BY_NAME
def test_on_an_lm_head(loss_fn, losses, slopes):
    """Through linear_token_loss in chunks of one token, against autograd of the logits and the slopes by hand."""
    g = torch.Generator().manual_seed(5)
    hidden, weight = (torch.randn(n, 4, generator=g, dtype=torch.float64).requires_grad_() for n in (6, 11))
    targets = torch.tensor([3, 0, 10, 7, 7, 2])
    weights = float64([0.5, 1.0, 2.0, 0.25, 1.0, 0.75])
    logprobs = torch.log_softmax(hidden @ weight.T, -1)[torch.arange(6), targets]
    # the numbers by hand are of these rho, so the old log-probs have to follow the head's
    shift = logprobs.detach() - OLD - float64(RHO).log()
    shifted = lambda l, h, index: loss_fn(l - shift[index], h, index)  # noqa: E731
    out = linear_token_loss(hidden, weight, targets, shifted, weights=weights, chunk_bytes=1)
    expected_losses, expected = weights * float64(losses), weights * float64(slopes)
    torch.testing.assert_close(out.losses, expected_losses, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(out.loss, expected_losses.sum(), rtol=1e-9, atol=1e-12)
    grads = torch.autograd.grad(out.loss, (hidden, weight))
    by_hand = torch.autograd.grad((expected * logprobs).sum(), (hidden, weight))
    torch.testing.assert_close(grads, by_hand, rtol=1e-9, atol=1e-11)


def test_clipped_loss_is_the_dual_mode_loss():
    """The same losses and gradients as the fused kernel that the trainer uses for GRPO, masked tokens among them."""
    g = torch.Generator().manual_seed(1)
    logits, targets = torch.randn(4, 5, 7, generator=g), torch.randint(7, (4, 5), generator=g)
    advantages, noise = torch.randn(4, 5, generator=g), torch.randn(4, 5, generator=g)
    mask = torch.rand(4, 5, generator=g) < 0.7
    logits[~mask], advantages[~mask] = math.nan, math.nan
    a, b = (logits.clone().requires_grad_() for _ in range(2))
    old = torch.where(mask, logprobs_and_entropy(logits, targets, mask=mask).logprobs + 0.4 * noise, math.nan)
    weights = token_weights(mask, "dapo", max_completion_length=5)
    out = dual_mode_loss(
        a, targets, advantages=advantages, mode=torch.zeros_like(targets), old_logprobs=old, mask=mask,
        weights=weights, **CLIP,
    )  # fmt: skip
    assert out.clipped.any()
    place = mask.flatten().nonzero()[:, 0]
    logprobs, entropy = logprobs_and_entropy(b, targets, mask=mask)
    loss_fn = clipped_loss(advantages.flatten(), old.flatten(), **CLIP)
    losses = loss_fn(logprobs.flatten()[place], entropy.flatten()[place], place) * weights.flatten()[place]
    torch.testing.assert_close(losses.sum(), out.loss)
    out.loss.backward()
    losses.sum().backward()
    torch.testing.assert_close(b.grad[mask], a.grad[mask], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "make",
    [
        clipped_loss,
        ce_gppo_loss,
        lambda a, old: clip_cov_loss(a, old, torch.zeros(6, dtype=torch.bool)),
        lambda a, old: kl_cov_loss(a, old, torch.ones(6, dtype=torch.bool)),
    ],
)
def test_on_policy(make):
    """Without old log-probs rho is 1: losses -A, derivatives -A, whatever the algorithm; |log rho| has none at 0."""
    for old in (None, OLD):
        losses, slope = value_and_slope(make(ADVANTAGES, old), OLD, torch.arange(6))
        assert losses.equal(-ADVANTAGES)
        assert slope.equal(-ADVANTAGES)


def test_extreme_ratios_leave_finite_gradients_where_they_are_cut():
    """rho infinite with A > 0 and 0 with A < 0 are clipped: exp's derivative must not make 0 * inf of it.

    So too for a dropped token of infinite rho and A < 0, the last.
    """
    advantages, old = torch.tensor([1.0, -1.0, 1.0, -1.0]), torch.tensor([-200.0, -1.0, -1.0, -200.0])
    logprobs = torch.tensor([-1.0, -math.inf, -math.inf, -1.0])
    dropped = torch.tensor([True, False, True, True])
    for loss_fn, slopes in (
        (clipped_loss(advantages, old), [0.0, 0.0, 0.0]),
        (clip_cov_loss(advantages, old, dropped), [0.0, 0.0, 0.0, 0.0]),
        (ce_gppo_loss(advantages, old), [-1.2, 0.0, 0.0]),
    ):
        count = len(slopes)
        losses, slope = value_and_slope(loss_fn, logprobs[:count], torch.arange(count))
        assert losses.isfinite().all()
        torch.testing.assert_close(slope, torch.tensor(slopes))
    assert value_and_slope(clipped_loss(advantages, old), logprobs * math.nan, torch.arange(4))[0].isnan().all()


def test_the_vectors_are_constants():
    advantages, old = ADVANTAGES.clone().requires_grad_(), OLD.clone().requires_grad_()
    for loss_fn in (clipped_loss(advantages, old), kl_cov_loss(advantages, old, MARKS)):
        assert not loss_fn(OLD - 0.1, OLD, torch.arange(6)).requires_grad


WRONG = [
    (clipped_loss, (ADVANTAGES, OLD[:5]), {}, r"got advantages \(6,\), old_logprobs \(5,\)"),
    (clipped_loss, (ADVANTAGES.view(2, 3),), {}, r"flat vectors of one length \(N,\), got advantages \(2, 3\)"),
    (clipped_loss, (ADVANTAGES,), {"clip_low": 1.5}, "clip_low=1.5 must be in"),
    (clip_cov_loss, (ADVANTAGES, OLD, MARKS[:1]), {}, r"dropped \(1,\)"),
    (clip_cov_loss, (ADVANTAGES, OLD, MARKS), {"clip_high": -0.1}, "clip_high=-0.1 at least 0"),
    (kl_cov_loss, (ADVANTAGES, None, MARKS[:1]), {}, r"penalised \(1,\)"),
    (kl_cov_loss, (ADVANTAGES, OLD, MARKS), {"c": -1.0}, "c=-1.0 must be"),
    (ce_gppo_loss, (ADVANTAGES, OLD), {"b1": -1.0}, "b1=-1.0, b2=1.0 must be"),
]


@pytest.mark.parametrize(("factory", "arguments", "options", "message"), WRONG)
def test_errors(factory, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        factory(*arguments, **options)
