"""The baselines' advantages, token masks and entropy control, each a small pure function.

Rows are P groups of G responses to one question under one prompt: a single policy. What belongs to a response is
(P, G), what belongs to a token (P*G, T), with the groups one after the other. Results are detached. Entropies and
log-probs are in nats; the Policy Split paper (arXiv 2604.11510) gives its entropies in bits.
"""

import math
from typing import Any

import torch
from torch import Tensor

from .advantages import group_advantages, group_quantile


@torch.no_grad()
def grpo_advantages(rewards: Tensor, graded: Tensor | None = None) -> Tensor:
    """A_i = (r_i - mean) / (std + 1e-6), unbiased std of the group; 0 in a group of equal rewards.

    The same as `(r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True) + 1e-6)`. (P, G) -> (P, G).
    graded (P, G) bool: the group is these alone, and A is 0 elsewhere; None: all.
    ValueError: another shape, fewer than 2 responses, on a CPU a reward that is not finite.
    Source: GRPO, arXiv 2402.03300, section 4.1.2.
    """
    each = None if graded is None else graded[None, None]
    return group_advantages(_groups(rewards, graded)[None, None], each)[0, 0]


@torch.no_grad()
def pass_at_k_advantages(
    rewards: Tensor, k: int = 4, correct_reward: float = 1.0, graded: Tensor | None = None
) -> Tensor:
    """Advantages of pass@k training, its expectation over all subgroups of k; 0 if all subgroups pass or none.

    With c of n = G responses correct (reward >= correct_reward), rho = 1 - C(n-c, k) / C(n, k), s = sqrt(rho (1-rho)):
    A+ = (1 - rho) / s for a correct response, A- = (1 - rho - C(n-c-1, k-1) / C(n-1, k-1)) / s for a wrong one.
    (P, G) -> (P, G). graded (P, G) bool: n and c are of these alone, and A is 0 elsewhere and where n < k; None: all.
    ValueError: as `grpo_advantages`, and k outside 1..G.
    Source: arXiv 2508.10751, its analytical form.
    """
    rewards = _groups(rewards, graded)
    n = rewards.shape[1]
    if not (isinstance(k, int) and 1 <= k <= n):
        raise ValueError(f"k={k!r} must be an integer from 1 to the {n} responses of a group")
    correct = rewards >= correct_reward
    if graded is None:
        pairs = rewards.new_tensor([_pass_at_k_pair(n, c, k) for c in range(n + 1)])[correct.sum(1)]  # (P, 2)
        return torch.where(correct, pairs[:, :1], pairs[:, 1:])
    correct = correct & graded
    counts = zip(graded.sum(1).tolist(), correct.sum(1).tolist(), strict=True)
    pairs = rewards.new_tensor([_pass_at_k_pair(m, c, k) if m >= k else (0.0, 0.0) for m, c in counts]).view(-1, 2)
    return torch.where(graded, torch.where(correct, pairs[:, :1], pairs[:, 1:]), 0.0)


def _pass_at_k_pair(n: int, c: int, k: int) -> tuple[float, float]:
    failing = math.comb(n - c, k) / math.comb(n, k)  # 1 - rho
    if failing in (0.0, 1.0):
        return 0.0, 0.0
    s = math.sqrt(failing * (1 - failing))
    return failing / s, (failing - math.comb(n - c - 1, k - 1) / math.comb(n - 1, k - 1)) / s


@torch.no_grad()
def dynamic_sampling_mask(rewards: Tensor, correct_reward: float = 1.0, graded: Tensor | None = None) -> Tensor:
    """Which groups train under DAPO's dynamic sampling, those with 0 < c < G correct: (P, G) -> (P,) bool.

    Correct: reward >= correct_reward. graded (P, G) bool: a group is these alone; None: all. ValueError: as
    `grpo_advantages`. No new questions are drawn in place of the others, as DAPO does.
    Source: arXiv 2503.14476, eq. 11.
    """
    correct = _groups(rewards, graded) >= correct_reward
    if graded is None:
        return correct.any(1) & ~correct.all(1)
    return (correct & graded).any(1) & (~correct & graded).any(1)


@torch.no_grad()
def entropy_advantage(advantages: Tensor, entropy: Tensor, alpha: float = 0.4, kappa: float = 2.0) -> Tensor:
    """A_t + min(alpha * H_t, |A_t| / kappa), the entropy a constant: never turns the sign of A if kappa > 1.

    advantages, entropy (nats) (P*G, T) -> the same; each token of its own numbers, NaN stays where it is.
    ValueError: unequal shapes, alpha below 0, kappa not above 0. Source: arXiv 2506.14758.
    """
    _check_settings({"alpha": alpha}, 0, math.inf)
    if not kappa > 0:
        raise ValueError(f"kappa={kappa!r} must be a number above 0")
    _check_shapes(advantages=advantages, entropy=entropy)
    return advantages + torch.minimum(alpha * entropy, advantages.abs() / kappa)


@torch.no_grad()
def entropy_driven(advantages: Tensor, entropy: Tensor, mask: Tensor, limit: float = math.inf) -> Tensor:
    """A_i * mean(Hbar) / Hbar_i: confident responses count more. Hbar_i is the mean entropy of a row's valid tokens.

    The mean is over the batch's rows that have a valid token, as in the released code (the paper: over the group). A
    row of entropy exactly 0 keeps its A: whatever the factor, its gradient is 0. `limit` bounds the factor to
    [1 / limit, limit]; the paper has none, but a nearly certain row then outweighs all others.
    advantages, entropy (nats), mask (P*G, T) -> (P*G, T), 0 where mask is 0.
    ValueError: unequal shapes, limit below 1, on a CPU a valid token that is not finite. Source: EDGE-GRPO, arXiv
    2507.21848.
    """
    if not limit >= 1:
        raise ValueError(f"limit={limit!r} must be a number of at least 1")
    valid = _valid_tokens(mask, advantages=advantages, entropy=entropy)
    counts = valid.sum(1, keepdim=True)
    row_mean = torch.where(valid, entropy, 0.0).sum(1, keepdim=True) / counts.clamp(min=1)
    mean = row_mean.sum() / (counts > 0).sum().clamp(min=1)
    factor = torch.where(row_mean == 0, 1.0, mean / row_mean).clamp(1 / limit, limit)
    return torch.where(valid, advantages * factor, 0.0)


@torch.no_grad()
def forking_tokens_mask(entropy: Tensor, mask: Tensor, ratio: float = 0.2) -> Tensor:
    """The tokens that train: those of the batch's highest entropies, a fraction `ratio` of the valid ones.

    The same as `mask & (entropy >= torch.quantile(entropy[mask], 1 - ratio))`: all that equal the quantile train, so
    that ties do not depend on the order and equal entropies leave every token in.
    entropy (nats), mask (P*G, T) -> (P*G, T) bool. ValueError: unequal shapes, ratio outside (0, 1], on a CPU a valid
    entropy that is not finite. Source: arXiv 2506.01939.
    """
    _check_settings({"ratio": ratio}, 0, 1, above=True)
    valid = _valid_tokens(mask, entropy=entropy)
    if valid.numel() == 0:
        return valid
    as_group = (1, 1, 1, *valid.shape)  # the whole batch as one group
    threshold = group_quantile(entropy.reshape(as_group), valid.reshape(as_group), 1 - ratio)
    return valid & (entropy >= threshold.flatten())


@torch.no_grad()
def clip_cov_mask(
    advantages: Tensor,
    logprobs: Tensor,
    mask: Tensor,
    generator: torch.Generator,
    ratio: float = 2e-4,
    low: float = 1.0,
    high: float = 5.0,
) -> Tensor:
    """The tokens that lose their gradient: drawn at random among those with low < covariance < high.

    As many as max(1, int(ratio * valid tokens)), or all candidates if they are fewer; covariance_t = (A_t - mean A)
    (log p_t - mean log p), means over the valid tokens. The paper takes the log-probs of the policy in training; here
    they are those before the update, known for the whole batch.
    advantages, logprobs (nats), mask (P*G, T) -> (P*G, T) bool. The generator may be of another device. ValueError:
    unequal shapes, ratio outside (0, 1], low not below high, on a CPU a valid token that is not finite.
    Source: Clip-Cov, arXiv 2505.22617.
    """
    if not low < high:
        raise ValueError(f"low={low!r} must be below high={high!r}")
    covariances, valid, count = _covariances(advantages, logprobs, mask, ratio)
    candidates = valid & (low < covariances) & (covariances < high)
    keys = torch.rand(valid.shape, generator=generator, device=generator.device, dtype=torch.float64)
    return _smallest(keys.to(valid.device), candidates, count)


@torch.no_grad()
def kl_cov_mask(advantages: Tensor, logprobs: Tensor, mask: Tensor, ratio: float = 2e-4) -> Tensor:
    """The tokens that are held back by a KL penalty: the max(1, int(ratio * valid tokens)) of highest covariance.

    Covariance, shapes and errors as in `clip_cov_mask`; among equal ones the first.
    Source: KL-Cov, arXiv 2505.22617.
    """
    covariances, valid, count = _covariances(advantages, logprobs, mask, ratio)
    return _smallest(-covariances, valid, count)


def _covariances(advantages: Tensor, logprobs: Tensor, mask: Tensor, ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    """(covariances (P*G, T), valid (P*G, T), the number of tokens to choose ())."""
    _check_settings({"ratio": ratio}, 0, 1, above=True)
    valid = _valid_tokens(mask, advantages=advantages, logprobs=logprobs)
    total = valid.sum()
    a, l = (torch.where(valid, x, 0.0) for x in (advantages, logprobs))
    a, l = (x - x.sum() / total.clamp(min=1) for x in (a, l))
    return a * l, valid, (ratio * total.double()).floor().clamp(min=1)


def _smallest(keys: Tensor, candidates: Tensor, count: Tensor) -> Tensor:
    """The `count` candidates of the smallest keys, among equal ones the first; no host synchronisation."""
    order = torch.where(candidates, keys, math.inf).flatten().argsort(stable=True)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return candidates & (rank.view(candidates.shape) < count)


class AdaptiveEntropy:
    """Control of the entropy bonus's coefficient c: c + delta below the target entropy, c - delta above it.

    The bonus is applied, c * mean H in the objective, only while the mean entropy is at most the target; c stays in
    [0, largest]. `target` in nats. ValueError: a setting that is negative or not finite, a mean that is not finite.
    Source: Skywork-OR1, arXiv 2505.22312; the bounds are TRL's.
    """

    def __init__(self, target: float = 0.2, delta: float = 0.005, coefficient: float = 0.0, largest: float = 1.0):
        settings = {"target": target, "delta": delta, "coefficient": coefficient, "largest": largest}
        _check_settings(settings, 0, math.inf)
        self.target, self.delta, self.coefficient, self.largest = target, delta, coefficient, largest

    def update(self, mean_entropy: float) -> float:
        """The coefficient for the next update, from the mean token entropy (nats) of the last rollout."""
        if not math.isfinite(mean_entropy):
            raise ValueError(f"mean_entropy is {mean_entropy}, expected a finite number of nats")
        direction = (mean_entropy < self.target) - (mean_entropy > self.target)
        self.coefficient = min(max(self.coefficient + direction * self.delta, 0.0), self.largest)
        return self.coefficient if mean_entropy <= self.target else 0.0

    def state_dict(self) -> dict[str, float]:
        return {"coefficient": self.coefficient}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        _check_settings({"coefficient": state["coefficient"]}, 0, math.inf)
        self.coefficient = state["coefficient"]


def _groups(rewards: Tensor, graded: Tensor | None) -> Tensor:
    """Checked rewards (P, G) in a floating dtype, 0 where they are not graded."""
    if rewards.dim() != 2 or rewards.shape[1] < 2:
        raise ValueError(f"rewards has shape {tuple(rewards.shape)}, expected (P, G), G of at least 2 responses each")
    rewards = rewards if rewards.is_floating_point() else rewards.float()
    if graded is not None:
        rewards = torch.where(graded, rewards, 0.0)
    _check_finite("rewards", rewards, torch.ones_like(rewards, dtype=torch.bool))
    return rewards


def _valid_tokens(mask: Tensor, **tensors: Tensor) -> Tensor:
    """mask as bool, after a look at the shapes and, on a CPU, at the valid numbers."""
    _check_shapes(mask=mask, **tensors)
    valid = mask != 0
    for name, x in tensors.items():
        _check_finite(name, x, valid)
    return valid


def _check_shapes(**tensors: Tensor) -> None:
    shapes = {name: tuple(x.shape) for name, x in tensors.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 2 for shape in shapes.values()):
        given = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"expected one shape (P*G, T), got {given}")


def _check_finite(name: str, x: Tensor, valid: Tensor) -> None:
    """ValueError on a CPU; a GPU would have to synchronise."""
    bad = ~x.isfinite() & valid
    if x.device.type == "cpu" and bad.any():
        index = bad.nonzero()[0].tolist()
        raise ValueError(f"{name}{index} is {float(x[tuple(index)])}, expected a finite number")


def _check_settings(settings: dict[str, Any], low: float, high: float, *, above: bool = False) -> None:
    for name, value in settings.items():
        if not (low <= value <= high and math.isfinite(value)) or (above and value == low):
            limits = f"{'(' if above else '['}{low}, {high}{')' if high == math.inf else ']'}"
            raise ValueError(f"{name}={value!r} must be a number in {limits}")
