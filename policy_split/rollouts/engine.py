"""What an engine is that draws responses in the model's place, and how its responses come back into ours."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from policy_split.config import PolicySplitConfig
from policy_split.models.policy import Policy

from .sampling import sample, seed_of, seeded

Weights = Iterable[tuple[str, Tensor]]  # by the names of the checkpoint


class EngineError(RuntimeError):
    """The engine failed, or its answers are not the model's."""


class Drawn(NamedTuple):
    """One response: its token ids, the end among them, and the engine's log-prob of each (nats)."""

    ids: list[int]
    logprobs: list[float]


class RolloutEngine(Protocol):
    """Draws from the weights that it was given last; any failure is an EngineError."""

    name: str

    def generate(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], *, temperature: float, max_tokens: int
    ) -> list[Drawn]:
        """One response to each prompt (token ids) under its own seed, unfiltered, up to and with its end."""

    def update(self, weights: Weights) -> None:
        """Take these weights, and forget all that was computed with others."""

    def rest(self) -> None:
        """Leave as much memory as can be left until the next update."""

    def close(self) -> None:
        """Leave everything."""


class Responses(NamedTuple):
    """ids (R, T) and, of an engine, its log-probs (R, T) in nats, 0 behind the end."""

    ids: Tensor
    logprobs: Tensor | None


def draw(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    config: PolicySplitConfig,
    seed: int,
    engine: RolloutEngine | None = None,  # None: the model itself generates
) -> Responses:
    """One response to each prompt: a function of the weights, the prompts and the seed."""
    if engine is None:
        with seeded(seed, policy.device):
            return Responses(sample(policy, prompts, config), None)
    seeds = [seed_of(seed, row) for row in range(len(prompts))]
    longest = config.max_completion_length
    drawn = engine.generate(prompts, seeds, temperature=config.temperature, max_tokens=longest)
    _check_whole(engine, drawn, len(prompts), policy.end_ids, longest)
    width = max(len(response.ids) for response in drawn)
    ids = torch.full((len(drawn), width), policy.pad_id)
    logprobs = torch.zeros(ids.shape)
    for row, response in enumerate(drawn):
        ids[row, : len(response.ids)] = torch.tensor(response.ids)
        logprobs[row, : len(response.ids)] = torch.tensor(response.logprobs)
    return Responses(ids.to(policy.device), logprobs.to(policy.device))


def _check_whole(
    engine: RolloutEngine, drawn: Sequence[Drawn], count: int, end_ids: Sequence[int], longest: int
) -> None:
    """EngineError for a response that is neither ended nor as long as it may be: what it lacks would be padding."""
    if len(drawn) != count:
        raise EngineError(f"{engine.name} answered {len(drawn)} of {count} prompts")
    ends = set(end_ids)
    for row, (ids, logprobs) in enumerate(drawn):
        ended = [place for place, token in enumerate(ids) if token in ends]
        whole = (len(ids) == longest and not ended) or ended == [len(ids) - 1]
        finite = sum(map(math.isfinite, logprobs))
        if not whole or len(ids) > longest or not len(ids) == len(logprobs) == finite:
            raise EngineError(
                f"{engine.name}: response {row} has {len(ids)} tokens, {finite} finite log-probs and "
                f"{'an' if ended else 'no'} end; expected one that ends, or max_completion_length={longest} tokens"
            )
