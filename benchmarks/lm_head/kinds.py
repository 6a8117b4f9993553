"""What is measured of the LM head on a GPU: with every token, with masked ones, with a frozen weight; and by whom."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..logits import check
from ..logits.candidates import token_losses
from . import linear
from .linear import HeadBatch, Products
from .peers import CROSS_ENTROPY, LINEAR_PEERS, WITHOUT_ENTROPY

PRODUCTS, OURS = "products", "policy_split"
TOKEN, STATISTICS = f"{OURS}-token", f"{OURS}-statistics"


@dataclass(frozen=True)
class HeadKind:
    name: str
    once: bool = False  # measured in one configuration only
    masked: bool = False
    frozen: bool = False  # the weight has no gradient, as where adapters are trained


HEAD = HeadKind("linear")
KINDS = [HEAD, HeadKind("linear-masked", once=True, masked=True), HeadKind("linear-frozen", once=True, frozen=True)]

LOSSES: dict[str, Callable[..., Tensor]] = {  # by what they leave out
    "": token_losses,
    WITHOUT_ENTROPY: lambda logprobs, entropy, *tokens: token_losses(logprobs, None, *tokens),
    CROSS_ENTROPY: lambda logprobs, entropy, *tokens: -logprobs,
}


class HeadInputs:
    """A batch; what its candidates are checked against and the products they are compared with, made when asked for."""

    def __init__(self, batch: HeadBatch):
        self.batch = batch
        self.dtype, self.is_cuda = batch.hidden.dtype, batch.hidden.is_cuda
        self.unit = 1 << 30  # bytes: memory is counted in GiB
        self.exact = functools.cache(lambda omits, masked: check.HeadGradients(batch, LOSSES[omits], masked))
        self.products = functools.cache(lambda masked: Products(batch, masked))


@dataclass
class HeadCandidate:
    kind: HeadKind
    name: str
    load: Callable[[], Callable]  # its loss; raises where a library is missing
    omits: str = ""
    record: dict = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"{self.kind.name}:{self.name}"

    @property
    def is_ours(self) -> bool:
        return self.name.startswith(OURS)

    def make(self, inputs: HeadInputs) -> Callable[[int], tuple[Tensor, ...]]:
        """The run of round k."""
        if self.name == PRODUCTS:
            return inputs.products(self.kind.masked).fresh(self.kind.frozen)
        return linear.loss_and_gradients(self.load(), inputs.batch, self.kind.masked, self.kind.frozen)

    def error(self, outputs: tuple[Tensor, ...], inputs: HeadInputs) -> float:
        """The larger of both gradients' errors, against float64."""
        if self.name == PRODUCTS:
            hidden = torch.zeros_like(inputs.batch.hidden)
            hidden[inputs.products(self.kind.masked).keep] = outputs[0]
            outputs = hidden, *outputs[1:]
        else:
            self.record |= {"ran": self.load().ran} if hasattr(self.load(), "ran") else {}
        self.record["errors"] = inputs.exact(self.omits, self.kind.masked).errors(outputs)
        return max(self.record["errors"].values())

    def tolerance(self, outputs: tuple[Tensor, ...], dtype: torch.dtype) -> float:
        return check.HEAD["ours" if self.is_ours else "peer"][dtype]


def candidates_of(kind: HeadKind) -> list[HeadCandidate]:
    """Everybody; of the kinds that are measured once, only who does the same work on all of it."""
    own = {PRODUCTS: Products, OURS: linear.our_head_loss, "eager": linear.eager_head_loss}
    if not kind.once:
        own |= {TOKEN: linear.our_token_loss, STATISTICS: linear.our_statistics_loss}
    found = [HeadCandidate(kind, name, functools.partial(itself, loss)) for name, loss in own.items()]
    if not kind.once:
        found.append(HeadCandidate(kind, "compile", compiled))
    peers = [x for x in LINEAR_PEERS if not (kind.once and x.omits)]
    return found + [HeadCandidate(kind, x.name, x.load, x.omits) for x in peers]


def itself(loss: Callable) -> Callable:
    return loss


@functools.cache
def compiled() -> Callable:
    """Compiled anew for each shape: with a vocabulary that may change it would be slower."""
    return torch.compile(linear.eager_head_loss, dynamic=False)
