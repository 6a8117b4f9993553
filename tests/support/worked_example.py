"""One question, two responses of each mode: the rows of the hand-computed examples of the advantages."""

import torch
from torch import Tensor


def rows(normal: list[float], high: list[float], fill: float = 0.0) -> Tensor:
    (nc0, nc1, nd, na, nb), (hc0, hc1, hd, ha, hb) = normal, high
    values = [
        [na, fill], [nb, fill],  # prompt N, response N
        [hc0, hc1], [hd, fill],  # prompt H, response H
        [nc0, nc1], [nd, fill],  # prompt N, response H
        [ha, fill], [hb, fill],  # prompt H, response N
    ]  # fmt: skip
    return torch.tensor(values, dtype=torch.float64)


REWARDS = torch.tensor([0.0, 0, 0, 4, 0, 4, 0, 0])
MASK = rows([1] * 5, [1] * 5).bool()
