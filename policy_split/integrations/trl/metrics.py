"""What TRL's log has of the split: entropies, the KLs between the modes, what the clamp took away."""

from torch import Tensor

from policy_split.algorithms.advantages import BonusStatistics
from policy_split.modes import HIGH_ENTROPY, MODE_NAMES, NORMAL
from policy_split.rollouts.metrics import Sums, k3, sum_and_count


def split_sums(
    logprobs: Tensor,  # (4*P*n, T) nats, of the blocks of `dual_mode_advantages`
    entropy: Tensor,  # (4*P*n, T) nats
    mask: Tensor,  # (4*P*n, T) bool
    bonus: BonusStatistics,
) -> Sums:
    """Each mode's entropy and its KL to the other (k3 estimates), over its own responses; shares of the bonus."""
    logprobs_of, entropy_of, mask_of = (x.chunk(4) for x in (logprobs, entropy, mask))
    sums: Sums = {}
    for mode, name in ((HIGH_ENTROPY, "kl_high_normal"), (NORMAL, "kl_normal_high")):
        # block 3 - k: the same responses under the other prompt
        kl = k3(logprobs_of[mode], logprobs_of[3 - mode])
        sums[f"policy_split/{name}"] = sum_and_count(kl[mask_of[mode]])
        sums[f"{MODE_NAMES[mode]}/entropy"] = sum_and_count(entropy_of[mode][mask_of[mode]])
    sums["policy_split/bonus_clamped_frac"] = sum_and_count(bonus.clamped_fraction[None])
    sums["policy_split/bonus_dead_frac"] = sum_and_count(bonus.dead_fraction[None])
    return sums
