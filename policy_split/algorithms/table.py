"""The algorithms that one field chooses: what each changes in GRPO, as functions that a trainer calls without an if.

`training_tokens` goes from the samples of a step to advantages and the tokens that train, `token_loss` from there to
the loss of a token. Coefficients of the loss that are not of the algorithm's own functions stand in its settings:
clip_low and clip_high (the clip range), entropy_coef (the weight of the mean entropy in the objective).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import baseline_losses as losses
from . import baselines
from .baselines import AdaptiveEntropy

Settings = Mapping[str, Any]
CHANGES = ("advantages", "token mask", "loss", "clip range", "entropy coefficient")


class Samples(NamedTuple):
    rewards: Tensor  # (P, G)
    logprobs: Tensor  # (P*G, T) nats, before the update
    entropy: Tensor  # (P*G, T) nats, before the update
    mask: Tensor  # (P*G, T)
    graded: Tensor | None = None  # (P, G) bool: responses that have a reward; the others have no mask; None: all


class TrainingTokens(NamedTuple):
    advantages: Tensor  # (P*G, T), 0 where mask is 0
    mask: Tensor  # (P*G, T) bool: the tokens that train
    chosen: Tensor | None  # (P*G, T) bool: those that the loss treats differently, None where it treats all alike


class LossVectors(NamedTuple):
    advantages: Tensor  # (N,)
    old_logprobs: Tensor | None  # (N,) nats; None: the policy is still the one that sampled
    chosen: Tensor | None = None  # (N,) bool

    @property
    def marked(self) -> Tensor:
        """`chosen`, for a loss that treats some tokens differently; ValueError where nobody chose."""
        if self.chosen is None:
            raise ValueError("this algorithm's loss needs the tokens of `TrainingTokens.chosen`, got chosen=None")
        return self.chosen


def _grpo(x: Samples, settings: Settings) -> Tensor:
    return baselines.grpo_advantages(x.rewards, x.graded)


def _plain_loss(x: LossVectors, clip: Settings, settings: Settings) -> losses.TokenLoss:
    return losses.clipped_loss(x.advantages, x.old_logprobs, **clip)


@dataclass(frozen=True)
class Algorithm:
    """What an algorithm changes in GRPO; every function is given the settings, whose defaults are the paper's."""

    name: str
    paper: str  # arXiv number
    changes: tuple[str, ...] = ()  # of CHANGES
    settings: Settings = field(default_factory=dict)
    group_advantages: Callable[[Samples, Settings], Tensor] = _grpo  # -> (P, G)
    token_advantages: Callable[[Tensor, Samples, Settings], Tensor] | None = None  # (P*G, T) -> (P*G, T)
    token_mask: Callable[[Samples, Settings], Tensor] | None = None  # -> (P*G, T) bool, among the valid tokens
    chosen: Callable[[Tensor, Samples, torch.Generator, Settings], Tensor] | None = None  # (P*G, T) -> (P*G, T) bool
    loss: Callable[[LossVectors, Settings, Settings], losses.TokenLoss] = _plain_loss
    entropy_control: Callable[[Settings], AdaptiveEntropy] | None = None
    reads_scores: bool = False  # what trains depends on the rollout's log-probs or entropies, not on rewards alone
    dual_mode: bool = False  # two prompts for each question: the samples are those of `dual_mode_advantages`

    def with_settings(self, **settings: Any) -> "Algorithm":
        """The same with other settings; ValueError for a name that it does not have."""
        unknown = sorted(settings.keys() - self.settings.keys())
        if unknown:
            has = ", ".join(self.settings) or "none"
            raise ValueError(f"algorithm {self.name!r} has no setting {', '.join(unknown)}; it has: {has}")
        return replace(self, settings={**self.settings, **settings})


def find_algorithm(name: str) -> Algorithm:
    """ALGORITHMS[name]; ValueError lists the names."""
    if name not in ALGORITHMS:
        raise ValueError(f"algorithm={name!r} must be one of {', '.join(map(repr, ALGORITHMS))}")
    return ALGORITHMS[name]


@torch.no_grad()
def training_tokens(algorithm: Algorithm, samples: Samples, generator: torch.Generator) -> TrainingTokens:
    """Advantages of the valid tokens, those that train and those that the loss treats differently.

    The generator draws what is drawn (`clip_cov`). What is behind the mask is not read. ValueError: the errors of the
    algorithm's functions, rows that are not P*G, an algorithm of two modes.
    """
    if algorithm.dual_mode:
        raise ValueError(f"algorithm {algorithm.name!r} has two modes: its advantages are dual_mode_advantages")
    rewards, rows = samples.rewards, samples.mask.shape[0]
    if rewards.numel() != rows:
        raise ValueError(f"rewards has shape {tuple(rewards.shape)}, expected (P, G) with P*G = {rows} rows of mask")
    valid = samples.mask != 0
    if samples.graded is not None:
        valid = valid & samples.graded.reshape(-1, 1)
        samples = samples._replace(mask=valid)
    settings = algorithm.settings
    response = algorithm.group_advantages(samples, settings).reshape(-1, 1).to(samples.logprobs.dtype)
    advantages = torch.where(valid, response, 0.0)
    if algorithm.token_advantages is not None:
        advantages = torch.where(valid, algorithm.token_advantages(advantages, samples, settings), 0.0)
    chosen = None
    if algorithm.chosen is not None:
        chosen = algorithm.chosen(advantages, samples, generator, settings)
    mask = valid if algorithm.token_mask is None else valid & algorithm.token_mask(samples, settings)
    return TrainingTokens(advantages, mask, chosen)


def token_loss(
    algorithm: Algorithm, vectors: LossVectors, *, clip_low: float = 0.2, clip_high: float = 0.2
) -> losses.TokenLoss:
    """The loss_fn(logprobs, entropy, index) of `linear_token_loss` for N tokens, the entropy's coefficient apart.

    The algorithm's own clip range, if it has one, goes before clip_low and clip_high. ValueError: as its factory.
    """
    own = {name: algorithm.settings[name] for name in ("clip_low", "clip_high") if name in algorithm.settings}
    return algorithm.loss(vectors, {"clip_low": clip_low, "clip_high": clip_high} | own, algorithm.settings)


def _groups_that_differ(x: Samples, settings: Settings) -> Tensor:
    trains = baselines.dynamic_sampling_mask(x.rewards, settings["correct_reward"], x.graded)
    return trains.repeat_interleave(x.rewards.shape[1])[:, None]


_ALGORITHMS = (
    Algorithm("grpo", "2402.03300"),
    Algorithm(
        "clip_higher",
        "2503.14476",
        ("clip range", "token mask"),
        {"clip_low": 0.2, "clip_high": 0.28, "correct_reward": 1.0},
        token_mask=_groups_that_differ,
    ),
    # 0.003 is the setting of arXiv 2604.11510; small models from scratch need about 0.05
    Algorithm("entropy_bonus", "2604.11510", ("entropy coefficient",), {"entropy_coef": 0.003}),
    Algorithm(
        "adaptive_entropy",
        "2505.22312",
        ("entropy coefficient",),
        {"target": 0.2, "delta": 0.005},
        reads_scores=True,
        entropy_control=lambda s: AdaptiveEntropy(**s),
    ),
    Algorithm(
        "entropy_advantage",
        "2506.14758",
        ("advantages",),
        {"alpha": 0.4, "kappa": 2.0},
        reads_scores=True,
        token_advantages=lambda a, x, s: baselines.entropy_advantage(a, x.entropy, **s),
    ),
    Algorithm(
        "entropy_driven",
        "2507.21848",
        ("advantages",),
        {"limit": float("inf")},
        reads_scores=True,
        token_advantages=lambda a, x, s: baselines.entropy_driven(a, x.entropy, x.mask, **s),
    ),
    Algorithm(
        "forking_tokens",
        "2506.01939",
        ("token mask",),
        {"ratio": 0.2},
        reads_scores=True,
        token_mask=lambda x, s: baselines.forking_tokens_mask(x.entropy, x.mask, **s),
    ),
    Algorithm(
        "clip_cov",
        "2505.22617",
        ("loss",),
        {"ratio": 2e-4, "low": 1.0, "high": 5.0},
        reads_scores=True,
        chosen=lambda a, x, g, s: baselines.clip_cov_mask(a, x.logprobs, x.mask, g, **s),
        loss=lambda x, clip, s: losses.clip_cov_loss(x.advantages, x.old_logprobs, x.marked, **clip),
    ),
    Algorithm(
        "kl_cov",
        "2505.22617",
        ("loss", "clip range"),
        {"ratio": 2e-4, "c": 1.0},
        reads_scores=True,
        chosen=lambda a, x, g, s: baselines.kl_cov_mask(a, x.logprobs, x.mask, s["ratio"]),
        loss=lambda x, clip, s: losses.kl_cov_loss(x.advantages, x.old_logprobs, x.marked, c=s["c"]),
    ),
    Algorithm(
        "ce_gppo",
        "2509.20712",
        ("loss",),
        {"b1": 0.5, "b2": 1.0},
        loss=lambda x, clip, s: losses.ce_gppo_loss(x.advantages, x.old_logprobs, **s, **clip),
    ),
    Algorithm(
        "pass_at_k",
        "2508.10751",
        ("advantages",),
        {"k": 4, "correct_reward": 1.0},
        group_advantages=lambda x, s: baselines.pass_at_k_advantages(x.rewards, **s, graded=x.graded),
    ),
    Algorithm(
        "policy_split",
        "2604.11510",
        ("advantages",),
        {"alpha": 0.5, "eta": 0.03, "kappa": 2.0, "clamp": "paper"},
        reads_scores=True,
        dual_mode=True,
    ),
)
ALGORITHMS: dict[str, Algorithm] = {algorithm.name: algorithm for algorithm in _ALGORITHMS}
