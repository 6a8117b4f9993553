"""The peers: other libraries' functions for the same values, each imported when it is asked for.

A forward peer is a function (logits (N, V), targets (N,)) -> (logprobs, entropy or None); a loss peer takes what
`candidates.eager_loss` takes. What a peer leaves out of the work makes its time a bound, not a comparison.
"""

import functools
import importlib
import importlib.machinery
import importlib.metadata
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .candidates import CLIP, mean, sequences_of, token_losses


@dataclass(frozen=True)
class Peer:
    name: str
    distribution: str  # of the package index
    kind: str  # "forward", "loss" or, in `lm_head.peers`, "linear"
    load: Callable[[], Callable]  # imports it
    omits: str = ""  # of the work that the others do


def trl_statistics() -> Callable:
    fused = importlib.import_module("trl.kernels").selective_log_softmax_and_entropy

    def statistics(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return fused(logits, targets, temperature=1.0)

    return statistics


def verl_statistics() -> Callable:
    """Its functions loop over the first dimension, so it gets sequences."""
    verl = module("verl.utils.torch_functional")

    def statistics(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        sequences = sequences_of(len(targets))
        logits, targets = logits.view(sequences, -1, logits.shape[-1]), targets.view(sequences, -1)
        logprobs = verl.logprobs_from_logits(logits, targets, inplace_backward=False)
        return logprobs.flatten(), verl.entropy_from_logits(logits).flatten()

    return statistics


def quack_logprobs() -> Callable:
    forward = importlib.import_module("quack.cross_entropy").cross_entropy_fwd

    def statistics(logits: Tensor, targets: Tensor) -> tuple[Tensor, None]:
        loss, _ = forward(logits, targets, return_lse=True)
        return -loss, None

    return statistics


def flash_attn_logprobs() -> Callable:
    cross_entropy = module("flash_attn.ops.triton.cross_entropy").cross_entropy_loss

    def statistics(logits: Tensor, targets: Tensor) -> tuple[Tensor, None]:
        loss, _ = cross_entropy(logits, targets, inplace_backward=False)
        return -loss, None

    return statistics


def trl_loss() -> Callable:
    fused = importlib.import_module("trl.kernels").selective_log_softmax_and_entropy

    def loss(
        logits: Tensor, targets: Tensor, *tokens: Tensor, mask: Tensor | None = None, with_entropy: bool = True
    ) -> Tensor:
        logprobs, entropy = fused(logits, targets, temperature=1.0, row_mask=mask)
        return mean(token_losses(logprobs, entropy if with_entropy else None, *tokens), mask)

    return loss


def liger_loss() -> Callable:
    """It has no entropy, one advantage for each sequence, and drops the last position of each."""
    grpo = importlib.import_module("liger_kernel.transformers.grpo_loss").triton_grpo_loss

    def loss(
        logits: Tensor, targets: Tensor, advantages: Tensor, mode: Tensor, old_logprobs: Tensor,
        mask: Tensor | None = None, with_entropy: bool = False,
    ) -> Tensor:  # fmt: skip
        sequences = sequences_of(len(targets))

        def scored(x: Tensor) -> Tensor:
            return x.view(sequences, -1)[:, :-1].contiguous()

        per_sequence = advantages.view(sequences, -1)[:, 0].contiguous()
        losses, _, _ = grpo(
            logits.view(sequences, -1, logits.shape[-1]), scored(old_logprobs), None, scored(targets), per_sequence,
            completion_mask=None if mask is None else scored(mask), temperature=1.0, beta=0.0, eps_low=CLIP,
            eps_high=CLIP, inplace=False, loss_type="grpo", reduce=False,
        )  # fmt: skip
        return losses.sum() / (len(targets) if mask is None else mask.sum())

    return loss


PEERS = [
    Peer("trl", "trl", "forward", functools.cache(trl_statistics)),
    Peer("verl", "verl", "forward", functools.cache(verl_statistics)),
    Peer("quack", "quack-kernels", "forward", functools.cache(quack_logprobs), "entropy"),
    Peer("flash-attn", "flash-attn", "forward", functools.cache(flash_attn_logprobs), "entropy"),
    Peer("trl", "trl", "loss", functools.cache(trl_loss)),
    Peer("liger", "liger-kernel", "loss", functools.cache(liger_loss), "entropy"),
]


def importable(peers: list[Peer]) -> tuple[dict[str, str], dict[str, str]]:
    """(version of each peer that can be imported, why not of each other one)."""
    versions, missing = {}, {}
    for peer in peers:
        try:
            peer.load()
        except Exception as problem:
            missing[peer.name] = f"not importable: {type(problem).__name__}: {problem}"
            continue
        try:
            versions[peer.name] = importlib.metadata.version(peer.distribution)
        except importlib.metadata.PackageNotFoundError:
            versions[peer.name] = "of unknown version"
    return versions, missing


def module(name: str) -> types.ModuleType:
    """Import a module; where what its packages import first is missing, without them: past their `__init__`."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        top, *_ = name.split(".")
        if importlib.machinery.PathFinder.find_spec(top) is None:
            raise
        for loaded in [x for x in sys.modules if x == top or x.startswith(f"{top}.")]:
            del sys.modules[loaded]
        try:
            return _without_packages(name)
        except ImportError as second:
            raise second from error


def _without_packages(name: str) -> types.ModuleType:
    *packages, _ = name.split(".")
    path = None
    for depth in range(1, len(packages) + 1):
        package = ".".join(packages[:depth])
        spec = importlib.machinery.PathFinder.find_spec(package, path)
        if spec is None or spec.submodule_search_locations is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        empty = types.ModuleType(package)
        empty.__path__ = path = list(spec.submodule_search_locations)
        sys.modules[package] = empty
    return importlib.import_module(name)
