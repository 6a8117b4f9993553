"""What is measured on a GPU: the kinds of work, who does each of them, how it is run and how it is checked."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from . import candidates, check
from .candidates import Batch
from .peers import PEERS

OURS = "policy_split"
INPLACE = f"{OURS}-inplace"
MASKED = 0.3  # of the rows, in the kind that says so


@dataclass(frozen=True)
class Kind:
    """Work, and the least that it moves, in N x V: shares of a copy's bytes per second are of that."""

    name: str
    moves: float
    share: float | None = None  # of the copy's bytes per second: the target
    once: bool = False  # measured in one configuration only
    masked: bool = False
    with_entropy: bool = True


FORWARD, LOSS = Kind("forward", 1, share=0.90), Kind("loss", 2, share=0.85)
DIVERGENCE, DIVERGENCE_GRADIENT = Kind("divergence", 2), Kind("divergence+gradient", 6)
KINDS = [
    FORWARD,
    LOSS,
    DIVERGENCE,
    DIVERGENCE_GRADIENT,
    Kind("loss-masked", 2 - MASKED, once=True, masked=True),
    Kind("loss-no_entropy", 2, once=True, with_entropy=False),
]


class Inputs(NamedTuple):
    """What every candidate gets, and what its memory is counted in."""

    batches: list[Batch]
    scratch: torch.Tensor  # of the shape of the logits, to write over

    @property
    def dtype(self) -> torch.dtype:
        return self.scratch.dtype

    @property
    def is_cuda(self) -> bool:
        return self.scratch.is_cuda

    @property
    def unit(self) -> int:
        """Bytes of one N x V."""
        return self.scratch.nbytes


@dataclass
class Candidate:
    kind: Kind
    name: str
    load: Callable[[], Callable]  # its function; raises where a library is missing
    omits: str = ""
    record: dict = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"{self.kind.name}:{self.name}"

    @property
    def is_ours(self) -> bool:
        return self.name in (OURS, INPLACE)

    @property
    def with_entropy(self) -> bool:
        """One that has no entropy is held, in values too, to the loss that has none."""
        return self.kind.with_entropy and not self.omits

    @property
    def gives_gradient(self) -> bool:
        return self.kind not in (FORWARD, DIVERGENCE)

    def make(self, inputs: Inputs) -> Callable[[int], object]:
        """The run of round k."""
        batches, scratch = inputs
        function = self.load()
        if self.name == INPLACE:
            scratch.copy_(batches[0].logits)
            return candidates.loss_and_gradient_inplace(batches, scratch)
        if self.kind == FORWARD:
            return candidates.forward(function, batches)
        if self.kind == DIVERGENCE:
            return candidates.divergence(function, batches)
        if self.kind == DIVERGENCE_GRADIENT:
            return candidates.divergence_and_gradient(function, batches)
        return candidates.loss_and_gradient(function, batches, self.kind.masked, self.with_entropy)

    def error(self, outputs: tuple, inputs: Inputs) -> float:
        """Of the outputs of round 0, against float64."""
        batches = inputs.batches
        if self.kind == FORWARD:
            return check.statistics_error(outputs, batches[0])
        if self.kind == DIVERGENCE:
            return check.divergence_error(outputs, batches)
        if self.kind == DIVERGENCE_GRADIENT:
            return check.divergence_gradient_error(outputs, batches)
        mask = batches[0].mask if self.kind.masked else None
        return check.gradient_error(*outputs, batches[0], mask, self.with_entropy, without_last=self.name == "liger")

    def tolerance(self, outputs: tuple, dtype: torch.dtype) -> float:
        return check.tolerance(outputs, dtype, "ours" if self.is_ours else "peer", self.gives_gradient)


def candidates_of(kinds: list[Kind]) -> list[Candidate]:
    found = []
    for kind in kinds:
        work = kind.name.split("-")[0].split("+")[0]
        ours, eager = {
            "forward": (candidates.logprobs_and_entropy, candidates.eager_statistics),
            "loss": (candidates.our_loss, candidates.eager_loss),
            "divergence": (candidates.our_divergence, candidates.eager_divergence),
        }[work]
        found.append(Candidate(kind, OURS, functools.partial(itself, ours)))
        if kind == LOSS:
            found.append(Candidate(kind, INPLACE, functools.partial(itself, ours)))
        found.append(Candidate(kind, "compile", functools.partial(compiled, eager)))
        found.append(Candidate(kind, "eager", functools.partial(itself, eager)))
        for peer in PEERS:
            if peer.kind == work:
                omits = peer.omits if kind.with_entropy else ""
                found.append(Candidate(kind, peer.name, peer.load, omits))
    return found


def itself(function: Callable) -> Callable:
    return function


@functools.cache
def compiled(function: Callable) -> Callable:
    """torch.compile once for each vocabulary and dtype: as for ours, the number of rows may change."""
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    fast = torch.compile(function, dynamic=False)

    def call(*tensors: torch.Tensor, **settings) -> object:
        for x in [*tensors, *settings.values()]:
            if isinstance(x, torch.Tensor):
                torch._dynamo.mark_dynamic(x, 0)
        return fast(*tensors, **settings)

    return call
