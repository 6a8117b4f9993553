"""Advantages of bad input: each error names the argument and what would be right."""

import math

import pytest
import torch
from torch import Tensor
from worked_example import EXAMPLE, LOGPROBS, MASK, REWARDS

from policy_split.algorithms.advantages import bonus_statistics, dual_mode_advantages

BAD_OPTIONS = [
    ("num_prompts", 0, ValueError, "num_prompts must be an integer of at least 1, got 0"),
    ("num_prompts", 1.0, TypeError, "num_prompts"),
    ("num_prompts", True, TypeError, "num_prompts"),
    ("num_generations", 0, ValueError, "num_generations must be an integer of at least 1, got 0"),
    ("num_generations", -2, ValueError, "num_generations"),
    ("num_generations", "2", TypeError, "num_generations"),
    ("alpha", -0.1, ValueError, r"alpha must be a number in \[0, 1\], got -0.1"),
    ("alpha", 1.5, ValueError, "alpha"),
    ("alpha", math.nan, ValueError, "alpha"),
    ("alpha", None, TypeError, "alpha"),
    ("alpha", torch.tensor(0.5), TypeError, "alpha"),
    ("eta", -0.03, ValueError, "eta must be a finite number of at least 0, got -0.03"),
    ("eta", math.inf, ValueError, "eta"),
    ("eta_normal", math.nan, ValueError, "eta_normal must be a finite number, got nan"),
    ("eta_normal", -math.inf, ValueError, "eta_normal"),
    ("kappa", 0, ValueError, "kappa must be a finite number above 0, or None for no clamp, got 0"),
    ("kappa", -2.0, ValueError, "kappa"),
    ("kappa", math.inf, ValueError, "kappa"),
    ("kappa", "2", TypeError, "kappa"),
    ("clamp", "Paper", ValueError, "clamp must be 'paper' or 'code', got 'Paper'"),
    ("clamp", None, TypeError, "clamp"),
    ("clamp_floor", -1.0, ValueError, "clamp_floor must be a finite number of at least 0, got -1.0"),
    ("clamp_floor", math.nan, ValueError, "clamp_floor"),
    (
        "share_correction",
        "clipped",
        ValueError,
        "share_correction must be one of 'none', 'truncated', 'positive', 'sha",
    ),
    ("normalize", "z", ValueError, "normalize must be 'zscore', 'mean' or 'none', got 'z'"),
    ("normalize", None, TypeError, "normalize"),
    ("lowest_entropy_mask_ratio", 1.0, ValueError, r"lowest_entropy_mask_ratio must be a number in \[0, 1\), got 1.0"),
    ("lowest_entropy_mask_ratio", -0.1, ValueError, "lowest_entropy_mask_ratio"),
    ("correctness_mask", "all", ValueError, "correctness_mask must be 'none' or 'all_same', got 'all'"),
]


@pytest.mark.parametrize(("name", "value", "error", "message"), BAD_OPTIONS)
@pytest.mark.parametrize("function", [dual_mode_advantages, bonus_statistics])
def test_bad_options(function, name: str, value: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        function(REWARDS, LOGPROBS, MASK, **{**EXAMPLE, name: value})


def poked(x: Tensor, index: tuple[int, ...], value: float) -> Tensor:
    x = x.clone()
    x[index] = value
    return x


BAD_TENSORS = [
    ({"rewards": REWARDS[:7]}, ValueError, r"rewards has shape \(7,\), expected \(8,\) for 1 prompts, 2 generations"),
    ({"rewards": REWARDS[:, None]}, ValueError, r"rewards has shape \(8, 1\), expected \(8,\)"),
    ({"logprobs": LOGPROBS[:4]}, ValueError, r"logprobs has shape \(4, 2\), expected \(8, 2\)"),
    ({"logprobs": LOGPROBS[:, 0]}, ValueError, r"logprobs has shape \(8,\), expected \(8, 'T'\)"),
    ({"logprobs": LOGPROBS[..., None]}, ValueError, r"logprobs has shape \(8, 2, 1\), expected \(8, 'T'\)"),
    ({"mask": MASK[:, :1]}, ValueError, r"mask has shape \(8, 1\), expected \(8, 2\)"),
    ({"mask": MASK[:1]}, ValueError, r"mask has shape \(1, 2\), expected \(8, 2\)"),
    ({"surprise": LOGPROBS[:, :1]}, ValueError, r"surprise has shape \(8, 1\), expected \(8, 2\)"),
    ({"num_prompts": 2}, ValueError, r"logprobs has shape \(8, 2\), expected \(16, 2\) for 2 prompts, 2 generations"),
    ({"rewards": REWARDS.tolist()}, TypeError, "rewards must be a .*tensor, got list"),
    ({"logprobs": None}, TypeError, "logprobs must be a .*tensor, got NoneType"),
    ({"logprobs": MASK.long()}, TypeError, "logprobs must be a .*floating.* tensor, got torch.int64"),
    ({"surprise": MASK.long()}, TypeError, "surprise must be a .*floating.* tensor, got torch.int64"),
    ({"mask": None}, TypeError, "mask must be a .*tensor, got NoneType"),
    ({"rewards": poked(REWARDS, (5,), math.nan)}, ValueError, r"rewards\[5\] is nan, expected a finite number"),
    ({"rewards": poked(REWARDS, (0,), -math.inf)}, ValueError, r"rewards\[0\] is -inf"),
    ({"logprobs": poked(LOGPROBS, (2, 1), -math.inf)}, ValueError, r"logprobs\[2, 1\] is -inf"),
    ({"logprobs": poked(LOGPROBS, (7, 0), math.nan)}, ValueError, r"logprobs\[7, 0\] is nan"),
    ({"surprise": poked(LOGPROBS, (4, 1), math.inf)}, ValueError, r"surprise\[4, 1\] is inf"),
    ({"mask": poked(MASK, (5, 0), 0)}, ValueError, r"mask\[3\] differs from that of the same response"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD_TENSORS)
def test_bad_tensors(change: dict, error: type[Exception], message: str) -> None:
    arguments = {"rewards": REWARDS, "logprobs": LOGPROBS, "mask": MASK, **EXAMPLE, **change}
    with pytest.raises(error, match=message):
        dual_mode_advantages(**arguments)
