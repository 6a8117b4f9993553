"""Named sets of the method's settings: the paper's form, and what a study has found better."""

from typing import Any

PAPER: dict[str, Any] = {
    "alpha": 0.5,
    "eta": 0.03,
    "eta_normal": 0.0,
    "kappa": 2.0,
    "clamp": "paper",
    "clamp_floor": 0.0,
    "share_correction": "none",
    "normalize": "zscore",
    "lowest_entropy_mask_ratio": 0.0,
    "correctness_mask": "none",
    "bonus_estimator": "sampled",
    "regularizer": "advantage",
    "rollout_sharing": True,
    "target_kl": None,
}
# of the forms in docs/comparison.md the one that is ahead in best of k and in different right answers, as accurate
RECOMMENDED = PAPER | {"eta": 0.6, "clamp": "code", "share_correction": "positive", "target_kl": 0.2}
PRESETS: dict[str, dict[str, Any]] = {"paper": PAPER, "recommended": RECOMMENDED}
