"""torch.library: the schema and the fake of every operation; the only door to the backends.

Arguments are those of `reference`, in its order: logits (B, T, V), per-row vectors (N,). A name that ends in an
underscore writes over its first argument. `autograd` holds the formulas of those that are differentiable.
"""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.autograd.graph import increment_version

from .backends import cells
from .contract import statistics_dtype
from .memory import empty_like_dense
from .watchers import in_memory, nobody_else

_STATISTICS = "Tensor targets, Tensor inverse_temperature, Tensor? mask, float? softcap, Tensor? keep_mask"
_GRADIENT = (
    "Tensor row_max, Tensor log_sum, Tensor entropy, Tensor grad_logprobs, Tensor grad_entropy, Tensor? grad_lse"
)
LOSS = (
    "Tensor advantages, Tensor? old_logprobs, Tensor? ref_logprobs, Tensor? sampler_logprobs, Tensor weights, "
    "Tensor entropy_coef, Tensor kl_coef, str surrogate, float clip_low, float clip_high, float? clip_delta, "
    "float sampler_cap, float[] sapo_temperature, bool use_bias_correction_kl, float? kl_cap"
)
_PAIR = "Tensor logits_b, Tensor inverse_temperature, Tensor? mask"
_PAIR_GRADIENT = (
    "Tensor kl_ab, Tensor kl_ba, Tensor entropy_a, Tensor entropy_b, Tensor max_a, Tensor log_sum_a, Tensor max_b, "
    "Tensor log_sum_b, Tensor grad_kl_ab, Tensor grad_kl_ba, Tensor grad_entropy_a, Tensor grad_entropy_b, "
    "bool wants_a, bool wants_b"
)
_MIXTURE = f"{_PAIR}, float beta"
_MIXTURE_GRADIENT = (
    "Tensor kl_a, Tensor kl_b, Tensor max_a, Tensor log_sum_a, Tensor max_b, Tensor log_sum_b, "
    "Tensor grad_divergence, bool wants_a, bool wants_b"
)
_LOGITS, _LOGITS_WRITTEN = "Tensor logits", "Tensor(a!) logits"


def _schema(*arguments: str, returns: int) -> str:
    outputs = {0: "()", 1: "Tensor"}.get(returns, f"({', '.join(['Tensor'] * returns)})")
    return f"({', '.join(arguments)}) -> {outputs}"


def _own_library(name: str) -> torch.library.Library:
    """Of this copy of the sources alone: a second one in the process has a namespace, and so a backend, of its own."""
    names = (name if copy == 1 else f"{name}_{copy}" for copy in itertools.count(1))
    free = next(x for x in names if not hasattr(getattr(torch.ops, x), "logprobs_entropy"))
    return torch.library.Library(free, "FRAGMENT")


_LIBRARY = _own_library("policy_split")  # what is registered goes with it


_KERNELS: dict[OpOverload, Callable[..., Any]] = {}


def define(name: str, *arguments: str, returns: int) -> Callable[[Callable[..., Any]], OpOverload]:
    """Register a function for every device, as a plain kernel: a call of a `custom_op` costs several times as much."""
    written = "!" in arguments[0]

    def register(function: Callable[..., Any]) -> OpOverload:
        def writing(x: Tensor, *rest: Any) -> Any:
            increment_version(x)  # else what a backward has saved of it would serve unnoticed
            return function(x, *rest)

        kernel = writing if written else function
        _LIBRARY.define(name + _schema(*arguments, returns=returns), tags=(torch.Tag.pt2_compliant_tag,))
        _LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
        op: OpOverload = getattr(getattr(torch.ops, _LIBRARY.ns), name).default
        _KERNELS[op] = kernel
        return op

    return register


def call(op: OpOverload, x: Tensor, *arguments: Any) -> Any:
    """op(x, ...), of which no gradient is asked, by its kernel directly where the dispatcher would only find that.

    The way through the dispatcher costs as much as the work on a few short rows.
    """
    if nobody_else(x, *arguments):
        return _KERNELS[op](x, *arguments)
    return op(*(in_memory(each) if isinstance(each, Tensor) else each for each in (x, *arguments)))


def differentiable(op: OpOverload, apply: Callable[..., Any], logits: int) -> None:
    """Leave op to a Function where one of its first arguments, `logits` of them, requires grad."""

    def autograd(keyset: torch._C.DispatchKeySet, *arguments: Any) -> Any:
        if torch.is_grad_enabled() and any(x.requires_grad for x in arguments[:logits]):
            return apply(*arguments)
        return op.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)

    _LIBRARY.impl(op._opname, autograd, "Autograd", with_keyset=True)


def set_fake(op: OpOverload, function: Callable[..., Any]) -> None:
    torch.library.register_fake(op.name(), function)


def _dense_like(logits: Tensor) -> Tensor:
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


@define("logprobs_entropy", _LOGITS, _STATISTICS, returns=4)
def logprobs_entropy(logits: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return tuple(cells(logits.device).logprobs_entropy(logits, *arguments))


@define("logprobs_entropy_gradient", _LOGITS, _STATISTICS, _GRADIENT, returns=1)
def logprobs_entropy_gradient(logits: Tensor, *arguments: Any) -> Tensor:
    grad_logits = empty_like_dense(logits)
    cells(logits.device).logprobs_entropy_gradient(logits, *arguments, grad_logits)
    return grad_logits


@define("logprobs_entropy_gradient_", _LOGITS_WRITTEN, _STATISTICS, _GRADIENT, returns=0)
def logprobs_entropy_gradient_(logits: Tensor, *arguments: Any) -> None:
    cells(logits.device).logprobs_entropy_gradient(logits, *arguments, logits)


@define("dual_mode_loss", _LOGITS, _STATISTICS, LOSS, returns=9)
def dual_mode_loss(logits: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return tuple(cells(logits.device).dual_mode_loss(logits, *arguments, None))


@define("dual_mode_loss_with_gradient", _LOGITS, _STATISTICS, LOSS, returns=10)
def dual_mode_loss_with_gradient(logits: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    grad_logits = empty_like_dense(logits)
    return (*cells(logits.device).dual_mode_loss(logits, *arguments, grad_logits), grad_logits)


@define("dual_mode_loss_with_gradient_", _LOGITS_WRITTEN, _STATISTICS, LOSS, returns=9)
def dual_mode_loss_with_gradient_(logits: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return tuple(cells(logits.device).dual_mode_loss(logits, *arguments, logits))


@define("divergence", "Tensor logits_a", _PAIR, returns=8)
def divergence(logits_a: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return tuple(cells(logits_a.device, "divergence").divergence(logits_a, *arguments))


@define("divergence_gradient", "Tensor logits_a", _PAIR, _PAIR_GRADIENT, returns=2)
def divergence_gradient(logits_a: Tensor, logits_b: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """Of what is not wanted, an empty tensor."""
    return _gradients_of_pair("divergence_gradient", logits_a, logits_b, *arguments)


@define("jensen_shannon", "Tensor logits_a", _MIXTURE, returns=7)
def jensen_shannon(logits_a: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return tuple(cells(logits_a.device, "divergence").jensen_shannon(logits_a, *arguments))


@define("jensen_shannon_gradient", "Tensor logits_a", _MIXTURE, _MIXTURE_GRADIENT, returns=2)
def jensen_shannon_gradient(logits_a: Tensor, logits_b: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """Of what is not wanted, an empty tensor."""
    return _gradients_of_pair("jensen_shannon_gradient", logits_a, logits_b, *arguments)


def _gradients_of_pair(cell: str, logits_a: Tensor, logits_b: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    *rows, wants_a, wants_b = arguments
    wanted = [empty_like_dense(x) if wants else None for x, wants in ((logits_a, wants_a), (logits_b, wants_b))]
    getattr(cells(logits_a.device, "divergence"), cell)(logits_a, logits_b, *rows, *wanted)
    return tuple(logits_a.new_empty((0,)) if x is None else x for x in wanted)


@define("scale_rows_", "Tensor(a!) x", "Tensor scale", returns=0)
def scale_rows_(x: Tensor, scale: Tensor) -> None:
    cells(x.device).scale_rows_(x, scale)


def _row_vectors(logits: Tensor, count: int) -> tuple[Tensor, ...]:
    rows = logits.shape[0] * logits.shape[1]
    return tuple(logits.new_empty((rows,), dtype=statistics_dtype(logits.dtype)) for _ in range(count))


def _loss_rows(logits: Tensor, *_: Any) -> tuple[Tensor, ...]:
    clipped = logits.new_empty((logits.shape[0] * logits.shape[1],), dtype=torch.bool)
    return (*_row_vectors(logits, 4), clipped, *_row_vectors(logits, 4))


def _fake_gradients_of_pair(logits_a: Tensor, logits_b: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    pair = zip((logits_a, logits_b), arguments[-2:], strict=True)
    return tuple(_dense_like(x) if wants else x.new_empty((0,)) for x, wants in pair)


set_fake(logprobs_entropy, lambda logits, *_: _row_vectors(logits, 4))
set_fake(logprobs_entropy_gradient, lambda logits, *_: _dense_like(logits))
set_fake(logprobs_entropy_gradient_, lambda *_: None)
set_fake(dual_mode_loss, _loss_rows)
set_fake(dual_mode_loss_with_gradient, lambda logits, *_: (*_loss_rows(logits), _dense_like(logits)))
set_fake(dual_mode_loss_with_gradient_, _loss_rows)
set_fake(divergence, lambda logits_a, *_: _row_vectors(logits_a, 8))
set_fake(divergence_gradient, _fake_gradients_of_pair)
set_fake(jensen_shannon, lambda logits_a, *_: _row_vectors(logits_a, 7))
set_fake(jensen_shannon_gradient, _fake_gradients_of_pair)
set_fake(scale_rows_, lambda *_: None)
