"""The arguments of the token-level advantages: checked, and as blocks (2, 2, P, n)."""

from collections.abc import Callable, Mapping
from math import inf
from numbers import Integral, Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .share_correction import FORMS

OPTIONS: dict[str, tuple[type | tuple[type, ...], Callable[[Any], bool], str]] = {
    "num_prompts": (Integral, lambda x: x >= 1, "an integer of at least 1"),
    "num_generations": (Integral, lambda x: x >= 1, "an integer of at least 1"),
    "alpha": (Real, lambda x: 0 <= x <= 1, "a number in [0, 1]"),
    "eta": (Real, lambda x: 0 <= x < inf, "a finite number of at least 0"),
    "eta_normal": (Real, lambda x: -inf < x < inf, "a finite number"),
    "kappa": ((Real, type(None)), lambda x: x is None or 0 < x < inf, "a finite number above 0, or None for no clamp"),
    "clamp": (str, ("paper", "code").__contains__, "'paper' or 'code'"),
    "clamp_floor": (Real, lambda x: 0 <= x < inf, "a finite number of at least 0"),
    "share_correction": (str, FORMS.__contains__, f"one of {', '.join(map(repr, FORMS))}"),
    "share_gamma": (Real, lambda x: 0 < x < inf, "a finite number above 0"),
    "normalize": (str, ("zscore", "mean", "none").__contains__, "'zscore', 'mean' or 'none'"),
    "lowest_entropy_mask_ratio": (Real, lambda x: 0 <= x < 1, "a number in [0, 1)"),
    "correctness_mask": (str, ("none", "all_same").__contains__, "'none' or 'all_same'"),
    "rollout_sharing": (bool, lambda x: True, "True or False"),
}


class TokenValues(NamedTuple):
    """What the bonus is made of, in nats."""

    logprobs: Tensor
    surprise: Tensor | None
    divergence: Tensor | None


def as_blocks(
    rewards: Tensor, mask: Tensor, tokens: TokenValues, p: int, n: int, graded: Tensor | None
) -> tuple[Tensor, Tensor, TokenValues]:
    """(rewards, valid, tokens): checked, as blocks, of the working dtype; tokens are NaN where mask is 0.

    Responses that are not graded have no valid tokens and the reward 0.
    """
    if graded is not None:
        _check_flags("graded", graded, rewards.shape, "that of rewards, ")
        rewards = torch.where(graded.to(rewards.device), rewards, 0.0)
        mask = (mask != 0) & graded.to(mask.device)[:, None]
    if tokens.divergence is not None and tokens.surprise is None:
        raise ValueError("divergence needs surprise, the entropy of each row's own distribution, got surprise=None")
    logprobs, optional = tokens.logprobs, {"surprise": tokens.surprise, "divergence": tokens.divergence}
    given = {"logprobs": logprobs} | {name: x for name, x in optional.items() if x is not None}
    _check_tensors(given | {"rewards": rewards, "mask": mask}, p, n)
    valid, dtype = mask != 0, torch.float64 if logprobs.dtype == torch.float64 else torch.float32
    for name, x in ({"rewards": rewards} | given).items():
        bad = ~x.isfinite() if name == "rewards" else ~x.isfinite() & valid
        if bad.device.type == "cpu" and bad.any():
            index = bad.nonzero()[0].tolist()
            raise ValueError(f"{name}{index} is {float(x[tuple(index)])}, expected a finite number")
    valid = valid.reshape(2, 2, p, n, logprobs.shape[1])
    if valid.device.type == "cpu" and not valid.equal(valid.flip(0, 1)):
        row = int((valid != valid.flip(0, 1)).flatten(0, 3).any(-1).nonzero()[0])
        raise ValueError(f"mask[{row}] differs from that of the same response under the other prompt, expected equal")
    given = {name: torch.where(valid, x.to(dtype).reshape(valid.shape), torch.nan) for name, x in given.items()}
    return rewards.to(logprobs.device, dtype, non_blocking=True).reshape(2, 2, p, n), valid, tokens._replace(**given)


def _check_flags(name: str, flags: Tensor, shape: torch.Size, whose: str = "") -> None:
    if not isinstance(flags, Tensor) or flags.dtype != torch.bool:
        raise TypeError(f"{name} must be a bool tensor, got {getattr(flags, 'dtype', type(flags).__name__)}")
    if flags.shape != shape:
        raise ValueError(f"{name} has shape {tuple(flags.shape)}, expected {whose}{tuple(shape)}")


def own_blocks(own: Tensor, logprobs: Tensor, rollout_sharing: bool) -> Tensor:
    """(2, 2, P, n) bool: of a response's two rows exactly one is own."""
    if not rollout_sharing:
        raise ValueError("own needs rollout_sharing=True: without it the own rows are the first 2*P*n")
    _check_flags("own", own, torch.Size([logprobs.shape[:4].numel()]))
    own = own.to(logprobs.device).reshape(logprobs.shape[:4])
    if own.device.type == "cpu" and not own.equal(~own.flip(0, 1)):
        raise ValueError("own must be True at one of the two rows of each response, under the prompt that wrote it")
    return own


def check_options(arguments: Mapping[str, Any]) -> None:
    for name, (kind, allowed, expected) in OPTIONS.items():
        value = arguments[name]
        typed = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        if not (typed and allowed(value)):
            raise (ValueError if typed else TypeError)(f"{name} must be {expected}, got {value!r}")


def _check_tensors(tensors: dict[str, Tensor], p: int, n: int) -> None:
    for name, x in tensors.items():
        if not isinstance(x, Tensor) or (name not in ("rewards", "mask") and not x.is_floating_point()):
            raise TypeError(f"{name} must be a (floating) tensor, got {getattr(x, 'dtype', type(x).__name__)}")
        length = tensors["logprobs"].shape[1] if tensors["logprobs"].dim() == 2 else "T"
        expected = (4 * p * n,) if name == "rewards" else (4 * p * n, length)
        if tuple(x.shape) != expected:
            raise ValueError(f"{name} has shape {tuple(x.shape)}, expected {expected} for {p} prompts, {n} generations")
