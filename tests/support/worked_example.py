"""One question, two responses of each mode: the rows of the hand-computed examples of the advantages."""

import math

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


# One question, n = 2, T = 2. Normal-mode responses a, b; high-entropy ones c, d; c has two tokens, the others one.
#            c0   c1   d    a    b
# s_N         4   4.5  6.5  5    0      -log pi(o|q)
# s_H         0   6.5  4.5  5    4      -log pi(o|s,q)
# b_N         3   5    6    5    1      alpha = 3/4: b_N = 3/4 s_N + 1/4 s_H, mean 4
# b_H         1   6    5    5    3      b_H = 3/4 s_H + 1/4 s_N, mean 4
# b_N - 4    -1   1    2    1   -3      sum of squares 16, std = sqrt(16 / (5 - 1)) = 2
# b_H - 4    -3   2    1    1   -1      the same
# B_N       -.5   .5   1    .5 -1.5
# B_H      -1.5   1    .5   .5  -.5
# R           0   0    4    0    0      mean 1, std = sqrt((1 + 1 + 1 + 9) / 3) = 2
# A         -.5  -.5  1.5  -.5  -.5     |A| / kappa = .25 .25 .75 .25 .25
#
# Literals below are in the order c0 c1 d a b of this table; `rows` puts them into the eight rows.
S_NORMAL = [4, 4.5, 6.5, 5, 0]
S_HIGH = [0, 6.5, 4.5, 5, 4]
ZERO = [0.0] * 5
LOGPROBS = rows([-x for x in S_NORMAL], [-x for x in S_HIGH], fill=math.nan)
EXAMPLE = {"num_prompts": 1, "num_generations": 2, "alpha": 0.75}


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected.to(actual.dtype), atol=2e-6, rtol=2e-6)  # the 1e-6 beside a std of 2
