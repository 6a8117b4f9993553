"""Random shared rollouts, as `dual_mode_advantages` takes them."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Batch:
    rewards: Tensor
    logprobs: Tensor
    mask: Tensor
    surprise: Tensor | None
    sizes: dict[str, int]


PROMPT, RESPONSE = "NHNH", "NHHN"  # modes of the four blocks


def batch(prompts: int, n: int, length: int, seed: int, *, surprise: bool, garbage: float = 0.0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    size = (4, prompts * n, length)
    own = torch.rand(size[1:], generator=g) < 0.7, torch.rand(size[1:], generator=g) < 0.7
    mask = torch.stack([own["NH".index(r)] for r in RESPONSE]).flatten(0, 1)
    rewards = torch.randint(0, 2, (4 * prompts * n,), generator=g).double()
    nats = torch.randint(0, 33, (2, *size), generator=g).double().flatten(1, 2) / 8  # a grid: no near ties at quantiles
    nats = torch.where(mask, nats, garbage)
    sizes = {"num_prompts": prompts, "num_generations": n}
    return Batch(rewards, -nats[0], mask, nats[1] if surprise else None, sizes)


ALL_ON = {
    "eta": 0.3, "eta_normal": 0.1, "kappa": 2.0, "clamp": "code", "clamp_floor": 0.1, "share_correction": "truncated",
    "lowest_entropy_mask_ratio": 0.2,
}  # fmt: skip
