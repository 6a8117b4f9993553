"""Token-level advantages of shared rollouts: correctness plus the dual-mode entropy bonus (arXiv 2604.11510, eq. 3-6).

The 4*P*n rows are seen as (2, 2, P, n): [response borrowed or not, mode of the prompt, question, response].
The same response under the other prompt is the flip of the first two axes (block k <-> block 3 - k), and a group
(question, mode), 2n rows, is a reduction over the axes 0 and 3. The helpers take and return this view.
"""

import inspect
from collections.abc import Mapping
from math import inf
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .advantage_input import TokenValues, as_blocks, check_options, own_blocks
from .share_correction import share_weights

EPSILON = 1e-6
ROWS, TOKENS = (0, 3), (0, 3, 4)  # the axes of a group


class BonusStatistics(NamedTuple):
    """What became of the bonus: two shares `()`, for the log."""

    clamped_fraction: Tensor  # () of the valid tokens that would have a bonus without the clamp; 0 if there is none
    dead_fraction: Tensor  # () of the 2P (question, mode) groups: their rewards are all equal


class TokenAdvantages(NamedTuple):
    """Of each token `(4*P*n, T)`, 0 where mask is 0."""

    advantages: Tensor
    bonus: Tensor
    free: Tensor  # the bonus without its clamp


@torch.no_grad()
def dual_mode_advantages(
    rewards: Tensor,  # (4*P*n,) blocks prompt/response N/N, H/H, N/H, H/N; question-major inside a block
    logprobs: Tensor,  # (4*P*n, T) old log-probs, nats; anything where mask is 0
    mask: Tensor,  # (4*P*n, T) bool or 0/1, the same for both rows of a response
    *,
    num_prompts: int,
    num_generations: int,
    alpha: float = 0.5,
    eta: float = 0.03,
    eta_normal: float = 0.0,
    kappa: float | None = 2.0,
    clamp: str = "paper",
    clamp_floor: float = 0.0,
    share_correction: str = "none",
    share_gamma: float = 0.1,
    normalize: str = "zscore",
    lowest_entropy_mask_ratio: float = 0.0,
    correctness_mask: str = "none",
    rollout_sharing: bool = True,
    surprise: Tensor | None = None,  # (4*P*n, T) nats, replaces -logprobs in the bonus
    divergence: Tensor | None = None,  # (4*P*n, T) nats, KL(own mode || other); the surprise is then the own entropy
    graded: Tensor | None = None,  # (4*P*n,) bool: False leaves a response out, as if it were not there; None: all
    own: Tensor | None = None,  # (4*P*n,) bool: rows under the prompt that wrote the response; None: the first 2*P*n
) -> tuple[Tensor, Tensor]:
    """Advantages and bonus of each token: (4*P*n, T), detached, 0 where mask is 0; float32, or float64 if logprobs are.

    advantages = (group_advantages + bonus) * share_weights, bonus = entropy_bonus(preference)  (eq. 3-6).
    rollout_sharing=False, an ablation: a group is the n responses that the mode has written, borrowed rows have 0 and
    only tell what the other mode thinks of a response.
    TypeError, ValueError: a bad argument; on a CPU also unequal masks of one response and a reward, or what a valid
    token has, that is not finite (a GPU would have to synchronise: there they make their group NaN).
    """
    advantages, bonus, _ = _token_advantages(locals())
    return advantages, bonus


@torch.no_grad()
def advantages_and_bonuses(rewards: Tensor, logprobs: Tensor, mask: Tensor, **options: Any) -> TokenAdvantages:
    """`dual_mode_advantages`, with its arguments and errors, and the bonus that kappa=None would give as well."""
    bound = inspect.signature(dual_mode_advantages).bind(rewards, logprobs, mask, **options)
    bound.apply_defaults()
    return _token_advantages(bound.arguments)


def _token_advantages(arguments: Mapping[str, Any]) -> TokenAdvantages:
    """Of what `dual_mode_advantages` is given."""
    check_options(arguments)
    a = SimpleNamespace(**arguments)
    given = TokenValues(a.logprobs, a.surprise, a.divergence)
    rewards, valid, tokens = as_blocks(a.rewards, a.mask, given, a.num_prompts, a.num_generations, a.graded)
    rated = None if a.graded is None else a.graded.to(rewards.device).reshape(rewards.shape)
    b = raw_preference(*tokens, alpha=a.alpha)
    if not a.rollout_sharing:
        rewards, valid, b, rated = rewards[:1], valid[:1], b[:1], None if rated is None else rated[:1]
    correctness = group_advantages(rewards, rated)[..., None]
    filled = filled_rewards(rewards, rated)
    b = preference(b, valid, filled, a.normalize, a.lowest_entropy_mask_ratio, a.correctness_mask)
    bonus, free = (
        entropy_bonus(b, correctness, a.eta, a.eta_normal, kappa, a.clamp, a.clamp_floor) for kappa in (a.kappa, None)
    )
    form = a.share_correction if a.rollout_sharing else "none"
    own_rows = None if a.own is None else own_blocks(a.own, tokens.logprobs, a.rollout_sharing)
    weights = share_weights(form, tokens.logprobs, correctness, a.share_gamma, own_rows)
    results = (torch.where(valid, x, 0.0) for x in ((correctness + bonus) * weights, bonus, free))
    if not a.rollout_sharing:
        results = (torch.cat((x, torch.zeros_like(x))) for x in results)
    return TokenAdvantages(*(x.flatten(0, 3) for x in results))


def bonus_statistics(rewards: Tensor, logprobs: Tensor, mask: Tensor, **options: Any) -> BonusStatistics:
    """What the clamp takes away, of the arguments (and with the errors) of `dual_mode_advantages`; no host sync.

    A token is clamped if kappa=None would change its bonus: in a dead group all are, unless there is a clamp_floor.
    """
    return statistics_of(advantages_and_bonuses(rewards, logprobs, mask, **options), rewards, **options)


def statistics_of(found: TokenAdvantages, rewards: Tensor, **options: Any) -> BonusStatistics:
    """`bonus_statistics` where `advantages_and_bonuses` has been computed, of the same rewards and options."""
    _, bonus, free = found
    clamped = (bonus != free).sum() / (free != 0).sum().clamp(min=1)
    rewards = rewards.to(bonus.device, bonus.dtype, non_blocking=True)
    rewards = rewards.reshape(2, 2, options["num_prompts"], options["num_generations"])
    graded, count = options.get("graded"), 2 if options.get("rollout_sharing", True) else 1
    of_groups = None if graded is None else graded.to(rewards.device).reshape(rewards.shape)[:count]
    dead = equal_rewards(filled_rewards(rewards[:count], of_groups))
    return BonusStatistics(clamped.to(bonus.dtype), dead.to(bonus.dtype).mean())


def group_advantages(rewards: Tensor, graded: Tensor | None = None) -> Tensor:
    """A = (R - mean) / (std + 1e-6) over each group, unbiased (GRPO, arXiv 2402.03300): (2, 2, P, n) -> the same.

    graded (2, 2, P, n) bool: mean and std are over these alone, and A is 0 elsewhere; None: all.
    """
    if graded is None:
        std, mean = torch.std_mean(rewards, ROWS, correction=1, keepdim=True)
        # dead groups get an exact 0, however the mean is rounded
        return torch.where(equal_rewards(rewards), 0.0, (rewards - mean) / (std + EPSILON))
    count = graded.sum(ROWS, keepdim=True)
    mean = torch.where(graded, rewards, 0.0).sum(ROWS, keepdim=True) / count.clamp(min=1)
    deviation = torch.where(graded, rewards - mean, 0.0)
    std = (deviation.square().sum(ROWS, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    return torch.where(equal_rewards(filled_rewards(rewards, graded)), 0.0, deviation / (std + EPSILON))


def filled_rewards(rewards: Tensor, graded: Tensor | None) -> Tensor:
    """Rewards with the group's largest graded one, or 0, where there is none: for `equal_rewards`; (2, 2, P, n)."""
    if graded is None:
        return rewards
    largest = torch.where(graded, rewards, -inf).amax(ROWS, keepdim=True)
    return torch.where(graded, rewards, torch.where(graded.any(0, keepdim=True).any(3, keepdim=True), largest, 0.0))


def equal_rewards(rewards: Tensor) -> Tensor:
    """Whether max(R) == min(R) in each group, a dead one: (2, 2, P, n) -> (1, 2, P, 1) bool."""
    return rewards.amax(ROWS, keepdim=True) == rewards.amin(ROWS, keepdim=True)


def raw_preference(logprobs: Tensor, surprise: Tensor | None, divergence: Tensor | None, *, alpha: float) -> Tensor:
    """b = alpha * s_m + (1 - alpha) * s_m', s = -log pi(o_t) or the surprise, m' the other mode (eq. 4-6), nats.

    It is s_m + (1 - alpha) * (s_m' - s_m). Over tokens drawn from pi_m the mean of s_m is H(pi_m), that of the
    difference KL(pi_m || pi_m'): with divergence, b = s_m + (1 - alpha) * divergence. (2, 2, P, n, T) -> the same.
    """
    s = -logprobs if surprise is None else surprise
    if divergence is not None:
        return s + (1 - alpha) * divergence
    return alpha * s + (1 - alpha) * s.flip(0, 1)


def preference(
    b: Tensor, valid: Tensor, rewards: Tensor, normalize: str, ratio: float, correctness_mask: str
) -> Tensor:
    """Standardised b, of the tokens that are to have a bonus.

    Tokens below the quantile `ratio` of their group's b get 0, but count in its mean and std. "all_same" leaves only
    groups of equal rewards; A is 0 there, so their bonus is 0 too unless kappa is None or clamp_floor > 0.
    b (nats), valid (2, 2, P, n, T), rewards (2, 2, P, n) -> (2, 2, P, n, T).
    """
    if b.shape[-1] == 0:
        return b
    standardised = standardise(b, valid, normalize)
    if ratio > 0:
        standardised = torch.where(b < group_quantile(b, valid, ratio), 0.0, standardised)
    if correctness_mask == "all_same":
        standardised = torch.where(equal_rewards(rewards)[..., None], standardised, 0.0)
    return standardised


def standardise(b: Tensor, valid: Tensor, normalize: str) -> Tensor:
    """B = (b - mean) / (std + 1e-6), unbiased std, over the valid tokens of each group: (2, 2, P, n, T) -> the same.

    "mean" divides by max - min + 1e-6, "none" leaves b. Otherwise a group of equal b, or of one token, has B = 0.
    """
    if normalize == "none":
        return b
    count = valid.sum(TOKENS, keepdim=True)
    mean = torch.where(valid, b, 0.0).sum(TOKENS, keepdim=True) / count.clamp(min=1)
    low = torch.where(valid, b, inf).amin(TOKENS, keepdim=True)
    high = torch.where(valid, b, -inf).amax(TOKENS, keepdim=True)
    deviation = torch.where(valid & ~(high <= low), b - mean, 0.0)  # not `high > low`: NaN has to go through
    if normalize == "mean":
        return deviation / (high - low + EPSILON)
    variance = deviation.square().sum(TOKENS, keepdim=True) / (count - 1).clamp(min=1)
    return deviation / (variance.sqrt() + EPSILON)


def group_quantile(b: Tensor, valid: Tensor, ratio: float) -> Tensor:
    """torch.quantile(group's valid b) without its limit of 2^24 elements: (2, 2, P, n, T) -> (1, 2, P, 1, 1)."""
    ordered = torch.where(valid, b, inf).movedim(0, 2).flatten(2).sort(-1).values  # (2, P, 2*n*T)
    position = ratio * (valid.sum(TOKENS) - 1).clamp(min=0).double()[..., None]
    low, high = (ordered.gather(-1, x.long()) for x in (position.floor(), position.ceil()))
    return torch.lerp(low, high, position.frac().to(b.dtype))[None, ..., None]


def entropy_bonus(
    b: Tensor, correctness: Tensor, eta: float, eta_normal: float, kappa: float | None, clamp: str, clamp_floor: float
) -> Tensor:
    """scale * clip(B, -bound, bound), bound = max(|A|, clamp_floor) / kappa (eq. 3): B (2, 2, P, n, T) -> the same.

    scale is that of mode_scales, correctness A (2, 2, P, n, 1).
    clamp="code", as released: clip(scale * B, -bound, bound). kappa=None: scale * B.
    """
    scale = torch.cat([b.new_full((1, 1, 1, 1), x) for x in mode_scales(eta, eta_normal)])  # along the axis of modes
    if kappa is None:
        return scale * b
    bound = correctness.abs().clamp(min=clamp_floor) / kappa
    return (scale * b).clamp(-bound, bound) if clamp == "code" else scale * b.clamp(-bound, bound)


def mode_scales(eta: float, eta_normal: float) -> tuple[float, float]:
    """What each mode's bonus is multiplied by, in the modes' order: the normal mode's is subtracted."""
    return 0.0 - eta_normal, eta
