"""What a step reports, as sums that can be added over batches and processes.

Entropies and KLs are in nats. `loss` is near 0 as long as the policy that is updated is the one that sampled: every
ratio is 1 and the correctness advantages of a group sum to 0. It is not a measure of progress; `reward` is, and
`clip_ratio`, `grad_norm` say whether there are updates.
"""

import math

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from policy_split.algorithms.advantages import equal_rewards, filled_rewards
from policy_split.modes import HIGH_ENTROPY, MODE_NAMES, MODES, NORMAL
from policy_split.rewards.context import RewardContext

from .rollout import Rollout

Sums = dict[str, tuple[Tensor, Tensor]]  # name -> (sum, count): what can be added up over batches and processes


def rollout_sums(rollout: Rollout) -> Sums:
    """Reward, entropy (nats per token) and length of each mode's own responses, and both KLs between the modes.

    A mode that wrote nothing has none, and there is no KL where the responses are not shared. Rows that were not scored
    have 0 in the rollout's score_weight, and others stand for them: entropies and KLs are then unbiased estimates.

    Of responses that an engine drew, sampling/logp_difference is the mean of |log pi - log pi of the engine|, nats.

    The KLs are k3 estimates over the sampled tokens and, where the rollout has its divergence, the exact ones at the
    same positions (`exact_kl_...`): their mean over the first-named mode's own tokens, nats.
    """
    logprobs, entropies, divergence = rollout.scores
    graded = rollout.rewards.isnan().logical_not() if rollout.graded is None else rollout.graded
    each = rollout.mask.new_ones(len(rollout.mode)) if rollout.score_weight is None else rollout.score_weight
    weights = each[:, None].to(entropies.dtype)
    own = rollout.own_rows
    by = {mode: rollout.mode[own] == mode for mode in MODES}  # (2*P*n,) of the responses
    sums: Sums = {}
    for mode in MODES if rollout.shared else (NORMAL,):
        rows = own[by[mode]]
        mask, entropy, weight = (table[rows] for table in (rollout.mask, entropies, weights))
        values = {
            "reward": rollout.rewards[rows][graded[rows]],
            **_spread(*map(rollout.by_question, (rollout.rewards[own], graded[own] & by[mode]))),
            "completions/ungraded_ratio": ~graded[rows],
            "entropy": (weight * entropy)[mask],
            "completions/mean_length": mask.sum(1),
            "completions/clipped_ratio": rollout.truncated[by[mode]],
        }
        sums |= {f"{MODE_NAMES[mode]}/{name}": sum_and_count(value) for name, value in values.items()}
    if rollout.writer is not None:
        sums["policy_split/high_entropy_frac"] = sum_and_count(by[HIGH_ENTROPY])
    if rollout.sampler_logprobs is not None:
        difference = weights[own] * (logprobs[own] - rollout.sampler_logprobs).abs()
        sums["sampling/logp_difference"] = sum_and_count(difference[rollout.mask[own]])
    for name, mode in (("kl_high_normal", HIGH_ENTROPY), ("kl_normal_high", NORMAL)) if rollout.shared else ():
        rows = own[by[mode]]
        kl = weights[rows] * k3(logprobs[rows], logprobs[rollout.twins(rows)])
        sums[f"policy_split/{name}"] = sum_and_count(kl[rollout.mask[rows]])
        if divergence is not None:
            sums[f"policy_split/exact_{name}"] = sum_and_count((weights[rows] * divergence[rows])[rollout.mask[rows]])
    return sums


def bonus_sums(rollout: Rollout, bonus: Tensor, free: Tensor, *, shared: bool) -> Sums:
    """`bonus_statistics` of advantages, as sums over tokens and groups; free: the bonus without its clamp."""
    weight = 1.0 if rollout.score_weight is None else rollout.score_weight[:, None].double()
    clamped, could_be = ((weight * x).sum(dtype=torch.float64) for x in (bonus != free, free != 0))
    dead = sum_and_count(equal_rewards(grouped_rewards(rollout, shared=shared)))
    return {"policy_split/bonus_clamped_frac": (clamped, could_be), "policy_split/bonus_dead_frac": dead}


def grouped_rewards(rollout: Rollout, *, shared: bool) -> Tensor:
    """(2, 2, P, n) for `equal_rewards`, or (1, 2, P, n) of each mode's own responses; what is not graded is filled."""
    shape = (2, 2, rollout.num_prompts, rollout.num_generations)
    count, graded = 2 if shared else 1, rollout.graded
    of_groups = None if graded is None else graded.view(shape)[:count]
    return filled_rewards(rollout.rewards.view(shape)[:count], of_groups)


def _spread(rewards: Tensor, graded: Tensor) -> dict[str, Tensor]:
    """Standard deviation of each question's graded rewards (P, G), 0 for fewer than two, and whether they are equal."""
    count = graded.sum(1)
    deviation = torch.where(
        graded, rewards - torch.where(graded, rewards, 0.0).sum(1, keepdim=True) / count[:, None], 0.0
    )
    std = (deviation.square().sum(1) / (count - 1).clamp(min=1)).sqrt()
    low, high = (torch.where(graded, rewards, bound) for bound in (torch.inf, -torch.inf))
    return {"reward_std": std, "frac_reward_zero_std": high.amax(1) <= low.amin(1)}


def logged_sums(context: RewardContext, accelerator: Accelerator, taken: Sums) -> Sums:
    """What reward functions gave to log_metric, in all processes; ValueError for the name of a metric of ours."""
    names = sorted(set(gather_object(list(context.metrics))) if accelerator.num_processes > 1 else context.metrics)
    for name in names:
        if name in taken or name in ("step", "epoch", "learning_rate", "num_tokens", "step_time", "policy_split/eta"):
            raise ValueError(f"log_metric({name!r}, ...): the trainer has a metric of that name; give it another")
    device = accelerator.device
    return {name: sum_and_count(torch.tensor(context.metrics.get(name, []), device=device)) for name in names}


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
    """sum / count of each name, over all processes where there is an accelerator; 0 where nothing was counted, and NaN
    for the reward of a mode of which no response was graded."""
    table = torch.stack([torch.stack(pair) for pair in sums.values()])  # (K, 2)
    if accelerator is not None:
        table = accelerator.reduce(table, reduction="sum")
    return {
        name: s / c if c else math.nan if name.endswith("/reward") else 0.0
        for name, (s, c) in zip(sums, table.tolist(), strict=True)
    }
