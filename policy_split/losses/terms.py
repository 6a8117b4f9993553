"""The settings of a token's loss: surrogate, ratio, clips and the estimate of the KL, and which of them go together."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from policy_split_kernels.contract import SURROGATES
from policy_split_kernels.vector_loss import GammaWeight

# "vespo" weighs a sequence, which no kernel sees: its mathematics is on vectors alone.
ALL_SURROGATES = (*SURROGATES, "vespo")
RATIO_LEVELS = ("token", "sequence")
REDUCTIONS = ("sum", "none")
# What each surrogate has settings of its own for; another's are refused where they are set.
OWN_SETTINGS = {
    "clip": ("clip_low", "clip_high", "clip_delta"),
    "cispo": ("clip_low", "clip_high"),
    "sapo": ("sapo_temperature",),
    "vespo": ("vespo_k", "vespo_lambda"),
}


class PolicyTerms(NamedTuple):
    surrogate: str = "clip"
    ratio_level: str = "token"
    clip_low: float = 0.2
    clip_high: float = 0.2
    clip_delta: float | None = None
    sampler_cap: float = 2.0
    sapo_temperature: Sequence[float] = (1.0, 1.05)  # of tokens whose advantage is above 0, and of the others
    vespo_k: Sequence[float] = (2.0, 3.0)  # of tokens whose advantage is not below 0, and of the others
    vespo_lambda: Sequence[float] = (3.0, 2.0)
    use_bias_correction_kl: bool = False
    kl_cap: float | None = None
    reduction: str = "sum"

    # a method: torch.compile of PyTorch 2.10 does not trace a property of a named tuple
    def gamma(self) -> GammaWeight | None:
        return GammaWeight(self.vespo_k, self.vespo_lambda) if self.surrogate == "vespo" else None

    def numbers(self) -> tuple[Any, ...]:
        """The last arguments of `reference.dual_mode_loss`, as its kernels take them."""
        return (
            self.surrogate,
            float(self.clip_low),
            float(self.clip_high),
            None if self.clip_delta is None else float(self.clip_delta),
            float(self.sampler_cap),
            [float(x) for x in self.sapo_temperature],
            bool(self.use_bias_correction_kl),
            None if self.kl_cap is None else float(self.kl_cap),
        )


def check_terms(terms: PolicyTerms) -> None:
    """Raises ValueError for a setting that is none, or that does not go with the others."""
    for name, allowed in (("surrogate", ALL_SURROGATES), ("ratio_level", RATIO_LEVELS), ("reduction", REDUCTIONS)):
        if getattr(terms, name) not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {getattr(terms, name)!r}")
    if terms.surrogate == "cispo" and (terms.ratio_level != "token" or terms.clip_delta is not None):
        raise ValueError("surrogate='cispo' weighs each token by its own clipped ratio: no sequence, no clip_delta")
    if terms.surrogate == "vespo" and terms.ratio_level != "sequence":
        raise ValueError(
            "surrogate='vespo' weighs whole sequences by the product of their ratios: ratio_level='sequence'"
        )
    _check_own_settings(terms)
    if not terms.sampler_cap > 0:
        raise ValueError(f"sampler_cap must be above 0, got {terms.sampler_cap}")
    if terms.kl_cap is not None and not terms.kl_cap > 0:
        raise ValueError(f"kl_cap must be above 0, or None, got {terms.kl_cap}")
    if not 0 <= terms.clip_low <= 1:
        raise ValueError(f"clip_low must be between 0 and 1, got {terms.clip_low}")
    if not 0 <= terms.clip_high < math.inf:
        raise ValueError(f"clip_high must be finite and >= 0, got {terms.clip_high}")
    if terms.clip_delta is not None and not terms.clip_delta > 1 + terms.clip_high:
        raise ValueError(f"clip_delta must be above 1 + clip_high = {1 + terms.clip_high}, got {terms.clip_delta}")
    _check_pairs(sapo_temperature=terms.sapo_temperature, vespo_k=terms.vespo_k, vespo_lambda=terms.vespo_lambda)


def _check_own_settings(terms: PolicyTerms) -> None:
    """A setting that would have no effect is a misunderstanding."""
    own = OWN_SETTINGS[terms.surrogate]
    for name in {name for names in OWN_SETTINGS.values() for name in names} - set(own):
        value, default = getattr(terms, name), PolicyTerms._field_defaults[name]
        if value is not None and (default is None or not _same(value, default)):
            raise ValueError(
                f"surrogate={terms.surrogate!r} has no {name}, got {value}; its settings are {', '.join(own)}"
            )


def _same(value: Any, default: Any) -> bool:
    return bool((tuple(value) if isinstance(default, tuple) else value) == default)


def _check_pairs(**pairs: Sequence[float]) -> None:
    for name, pair in pairs.items():
        if len(pair) != 2 or not all(0 < x < math.inf for x in pair):
            raise ValueError(
                f"{name} must be two finite numbers above 0, of positive and of negative advantages, got {tuple(pair)}"
            )
