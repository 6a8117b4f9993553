"""What a study compares: algorithms and ablations by name, each with the settings in which it differs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..algorithms import ALGORITHMS


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


def _ablation(name: str, title: str, **settings: Any) -> Variant:
    return Variant(name, title, {**POLICY_SPLIT.settings, **settings}, ablation=True)


GRPO = _baseline("grpo", "GRPO")
POLICY_SPLIT = Variant("policy_split", "Policy Split", {"eta": 0.3})
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
ABLATIONS = (
    _ablation("no_rollout_sharing", "no rollout sharing", rollout_sharing=False),
    _ablation("no_kl_part", "no KL part (alpha 1)", alpha=1.0),
    _ablation("no_clamp", "no clamp", kappa=None),
    _ablation("paper_clamp", "the paper's clamp", clamp="paper"),
    _ablation("paper_settings", "the paper's settings", clamp="paper", eta=0.03, share_correction="none"),
    _ablation("no_share_correction", "no share correction", share_correction="none"),
    _ablation("larger_eta", "eta 0.6", eta=0.6),
    _ablation("clamp_floor", "clamp floor 0.1", clamp_floor=0.1),
    _ablation("exact_bonus", "exact bonus", bonus_estimator="exact"),
    _ablation("loss_regularizer", "differentiable regulariser", regularizer="loss", eta=0.05),
)
VARIANTS = {variant.name: variant for variant in (*BASELINES, POLICY_SPLIT, *ABLATIONS)}
MAIN = ("grpo", "entropy_bonus", "entropy_advantage", "policy_split")


def chosen_variants(names: list[str] | tuple[str, ...]) -> list[Variant]:
    """The variants of those names; ValueError lists what there is."""
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        raise ValueError(f"variant {unknown[0]!r} must be one of {', '.join(map(repr, VARIANTS))}")
    return [VARIANTS[name] for name in names]
