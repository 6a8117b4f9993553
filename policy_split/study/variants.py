"""What a study compares: algorithms and ablations by name, each with the settings in which it differs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from policy_split.algorithms.table import ALGORITHMS
from policy_split.config.presets import PAPER


@dataclass(frozen=True)
class Variant:
    """Settings of PolicySplitConfig over those of the size; where not the paper's, chosen on the held-out split."""

    name: str
    title: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    ablation: bool = False

    @property
    def dual_mode(self) -> bool:
        return ALGORITHMS[self.settings.get("algorithm", "policy_split")].dual_mode


def _baseline(name: str, title: str, settings: Mapping[str, Any] | None = None, **config: Any) -> Variant:
    own = {"algorithm": name, **({"algorithm_settings": dict(settings)} if settings else {})}
    return Variant(name, title, own | config)


GRPO = _baseline("grpo", "GRPO")
BASELINES = (
    GRPO,
    _baseline("entropy_bonus", "entropy bonus", {"entropy_coef": 0.05}),
    _baseline("entropy_advantage", "entropy advantage"),
    _baseline("clip_higher", "clip-higher"),
    _baseline("adaptive_entropy", "adaptive entropy"),
    _baseline("entropy_driven", "entropy-driven", {"limit": 4.0}),
    _baseline("forking_tokens", "forking tokens"),
    _baseline("clip_cov", "clip-cov", {"ratio": 0.02}),
    _baseline("kl_cov", "KL-cov", {"ratio": 0.02}),
    _baseline("ce_gppo", "CE-GPPO"),
    _baseline("pass_at_k", "pass@k training"),
)
# what an ablation changes: name -> (title, settings)
ABLATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "no_rollout_sharing": ("no rollout sharing", {"rollout_sharing": False}),
    "no_kl_part": ("no KL part (alpha 1)", {"alpha": 1.0}),
    "no_clamp": ("no clamp", {"kappa": None}),
    "paper_clamp": ("the paper's clamp", {"clamp": "paper"}),
    "paper_settings": ("the paper's settings", PAPER),
    "no_share_correction": ("no share correction", {"share_correction": "none"}),
    "larger_eta": ("eta 0.6", {"eta": 0.6}),
    "clamp_floor": ("clamp floor 0.1", {"clamp_floor": 0.1}),
    "positive_correction": ("full weight for right responses", {"share_correction": "positive"}),
    "shaped_correction": ("shaped correction, gamma 0.1", {"share_correction": "shaped"}),
    "held_kl": ("target KL 0.2", {"target_kl": 0.2}),
    "exact_bonus": ("exact bonus", {"bonus_estimator": "exact"}),
    "loss_regularizer": ("differentiable regulariser", {"regularizer": "loss", "eta": 0.05}),
}
POLICY_SPLIT = Variant("policy_split", "Policy Split")
MAIN = ("grpo", "entropy_bonus", "entropy_advantage", POLICY_SPLIT.name)
FORMS = (POLICY_SPLIT.name, "positive_correction", "paper_settings")  # the second is what --recommended sets
COMPARED = ("grpo", "entropy_bonus", "entropy_advantage", "clip_higher", *FORMS)
QUICK = ("grpo", POLICY_SPLIT.name)
HELD = (POLICY_SPLIT.name, "larger_eta", "held_kl")  # two fixed etas and a controller
TARGET = {"target_kl": 0.2}  # the paper's KL
NAMES = (*(variant.name for variant in BASELINES), POLICY_SPLIT.name, *ABLATIONS)


def chosen_variants(names: Iterable[str], eta: float, more: Mapping[str, Any] | None = None) -> tuple[Variant, ...]:
    """The variants of those names; eta and more are of Policy Split and its ablations. ValueError lists all."""
    own = {variant.name: variant for variant in BASELINES}
    common = {"eta": eta, **(more or {})}
    own[POLICY_SPLIT.name] = replace(POLICY_SPLIT, settings=common)
    for name, (title, settings) in ABLATIONS.items():
        own[name] = Variant(name, title, {**common, **settings}, ablation=True)
    unknown = [name for name in names if name not in own]
    if unknown:
        raise ValueError(f"variant {unknown[0]!r} must be one of {', '.join(map(repr, own))}")
    return tuple(own[name] for name in names)
