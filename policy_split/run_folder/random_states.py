"""The global generators of Python, NumPy and torch: a run does not draw from them, rewards may."""

import random
from typing import Any

import numpy
import torch


def random_states() -> dict[str, Any]:
    kind, keys, *rest = numpy.random.get_state(legacy=True)
    of_numpy = (kind, numpy.asarray(keys).tolist(), *rest)
    states: dict[str, Any] = {"python": random.getstate(), "numpy": of_numpy, "torch": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state_all()} if torch.cuda.is_available() else {})


def seed_random_states(seed: str) -> None:
    random.seed(seed)
    numpy.random.seed(random.getrandbits(32))
    torch.manual_seed(random.getrandbits(63))


def set_random_states(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    numpy.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if len(states.get("cuda", ())) == torch.cuda.device_count() > 0:
        torch.cuda.set_rng_state_all(states["cuda"])
