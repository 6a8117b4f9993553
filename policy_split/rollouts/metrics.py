"""What a step reports, as sums that can be added over batches and processes.

Entropies and KLs are in nats. `loss` is near 0 as long as the policy that is updated is the one that sampled: every
ratio is 1 and the correctness advantages of a group sum to 0. It is not a measure of progress; `reward` is, and
`clip_ratio`, `grad_norm` say whether there are updates.
"""

import torch
from accelerate import Accelerator
from torch import Tensor

from policy_split.algorithms.advantages import equal_rewards
from policy_split.modes import HIGH_ENTROPY, MODE_NAMES, MODES, NORMAL

from .rollout import Rollout

Sums = dict[str, tuple[Tensor, Tensor]]  # name -> (sum, count): what can be added up over batches and processes


def rollout_sums(rollout: Rollout) -> Sums:
    """Reward, entropy (nats per token) and length of each mode's own responses, and both KLs between the modes.

    A mode that wrote nothing has none, and there is no KL where the responses are not shared. Rows that were not scored
    have 0 in the rollout's score_weight, and others stand for them: entropies and KLs are then unbiased estimates.

    The KLs are k3 estimates over the sampled tokens and, where the rollout has its divergence, the exact ones at the
    same positions (`exact_kl_...`): their mean over the first-named mode's own tokens, nats.
    """
    logprobs, entropies, divergence = rollout.scores
    tables = {"mask": rollout.mask, "rewards": rollout.rewards, "logprobs": logprobs, "entropy": entropies}
    blocks = {name: table.chunk(len(rollout.blocks)) for name, table in tables.items()}
    each = rollout.mask.new_ones(len(rollout.mode)) if rollout.score_weight is None else rollout.score_weight
    weights = each[:, None].to(entropies.dtype).chunk(len(rollout.blocks))
    sums: Sums = {}
    for mode in MODES:
        halves = rollout.halves(mode)
        if not halves:
            continue
        mask, entropy = (torch.cat([blocks[name][half] for half in halves]) for name in ("mask", "entropy"))
        weight = torch.cat([weights[half] for half in halves])
        truncated = torch.cat([rollout.truncated.chunk(2)[half] for half in halves])
        rewards = torch.cat([blocks["rewards"][half].view(rollout.num_prompts, -1) for half in halves], 1)
        spread = rewards.std(1) if rewards.shape[1] > 1 else torch.zeros_like(rewards[:, 0])
        values = {
            "reward": rewards,
            "reward_std": spread,
            "frac_reward_zero_std": rewards.amax(1) == rewards.amin(1),
            "entropy": (weight * entropy)[mask],
            "completions/mean_length": mask.sum(1),
            "completions/clipped_ratio": truncated,
        }
        sums |= {f"{MODE_NAMES[mode]}/{name}": sum_and_count(value) for name, value in values.items()}
    for name, mode in (("kl_high_normal", HIGH_ENTROPY), ("kl_normal_high", NORMAL)) if rollout.shared else ():
        # block 3 - k holds the responses of block k under the other prompt
        kl = weights[mode] * k3(blocks["logprobs"][mode], blocks["logprobs"][3 - mode])
        sums[f"policy_split/{name}"] = sum_and_count(kl[blocks["mask"][mode]])
        if divergence is not None:
            exact = weights[mode] * divergence.chunk(4)[mode]
            sums[f"policy_split/exact_{name}"] = sum_and_count(exact[blocks["mask"][mode]])
    return sums


def bonus_sums(rollout: Rollout, bonus: Tensor, free: Tensor, *, shared: bool) -> Sums:
    """`bonus_statistics` of advantages, as sums over tokens and groups; free: the bonus without its clamp."""
    rewards = rollout.rewards.view(2, 2, rollout.num_prompts, rollout.num_generations)
    weight = 1.0 if rollout.score_weight is None else rollout.score_weight[:, None].double()
    clamped, could_be = ((weight * x).sum(dtype=torch.float64) for x in (bonus != free, free != 0))
    dead = sum_and_count(equal_rewards(rewards if shared else rewards[:1]))
    return {"policy_split/bonus_clamped_frac": (clamped, could_be), "policy_split/bonus_dead_frac": dead}


def k3(own: Tensor, other: Tensor) -> Tensor:
    """exp(x) - 1 - x with x = other - own: its mean over x ~ own is KL(own || other), nats, each term at least 0.

    Source: http://joschu.net/blog/kl-approx.html.
    """
    return torch.expm1(other - own) - (other - own)


def sum_and_count(values: Tensor) -> tuple[Tensor, Tensor]:
    return values.sum(dtype=torch.float64), torch.tensor(values.numel(), dtype=torch.float64, device=values.device)


def add_sums(left: Sums, right: Sums) -> Sums:
    zero = (0.0, 0.0)
    return left | {name: (left.get(name, zero)[0] + s, left.get(name, zero)[1] + c) for name, (s, c) in right.items()}


def means(sums: Sums, accelerator: Accelerator | None = None) -> dict[str, float]:
    """sum / count of each name, over all processes where there is an accelerator; 0 where nothing was counted."""
    table = torch.stack([torch.stack(pair) for pair in sums.values()])  # (K, 2)
    if accelerator is not None:
        table = accelerator.reduce(table, reduction="sum")
    return {name: s / c if c else 0.0 for name, (s, c) in zip(sums, table.tolist(), strict=True)}
