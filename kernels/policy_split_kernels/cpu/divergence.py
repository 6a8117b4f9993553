"""The operations of `reference.divergence` by the C++ library, on CPU tensors."""

from torch import Tensor

from ..contract import DivergenceRows, MixtureRows
from . import library
from .library import matrix_of, pointer, vectors


def divergence(logits_a: Tensor, logits_b: Tensor, inverse_temperature: Tensor, mask: Tensor | None) -> DivergenceRows:
    out = DivergenceRows(*vectors(logits_a, 8))
    pair = (matrix_of(x, None, None, inverse_temperature, mask, None, None) for x in (logits_a, logits_b))
    library.loaded().ps_divergence(*pair, library.Divergence(*map(pointer, out)))
    return out


def divergence_gradient(
    logits_a: Tensor,
    logits_b: Tensor,
    inverse_temperature: Tensor,
    mask: Tensor | None,
    kl_ab: Tensor,
    kl_ba: Tensor,
    entropy_a: Tensor,
    entropy_b: Tensor,
    max_a: Tensor,
    log_sum_a: Tensor,
    max_b: Tensor,
    log_sum_b: Tensor,
    grad_kl_ab: Tensor,
    grad_kl_ba: Tensor,
    grad_entropy_a: Tensor,
    grad_entropy_b: Tensor,
    grad_a: Tensor | None,
    grad_b: Tensor | None,
) -> None:
    sides = ((logits_a, grad_a), (logits_b, grad_b))
    pair = (matrix_of(x, grad, None, inverse_temperature, mask, None, None) for x, grad in sides)
    rows = DivergenceRows(kl_ab, kl_ba, entropy_a, entropy_b, max_a, log_sum_a, max_b, log_sum_b)
    upstream = (grad_kl_ab, grad_kl_ba, grad_entropy_a, grad_entropy_b)
    library.loaded().ps_divergence_gradient(
        *pair, library.Divergence(*map(pointer, rows)), library.PairUpstream(*map(pointer, upstream))
    )


def jensen_shannon(
    logits_a: Tensor, logits_b: Tensor, inverse_temperature: Tensor, mask: Tensor | None, beta: float
) -> MixtureRows:
    out = MixtureRows(*vectors(logits_a, 7))
    pair = (matrix_of(x, None, None, inverse_temperature, mask, None, None) for x in (logits_a, logits_b))
    library.loaded().ps_jensen_shannon(*pair, library.Mixture(beta, *map(pointer, out)))
    return out


def jensen_shannon_gradient(
    logits_a: Tensor,
    logits_b: Tensor,
    inverse_temperature: Tensor,
    mask: Tensor | None,
    beta: float,
    kl_a: Tensor,
    kl_b: Tensor,
    max_a: Tensor,
    log_sum_a: Tensor,
    max_b: Tensor,
    log_sum_b: Tensor,
    grad_divergence: Tensor,
    grad_a: Tensor | None,
    grad_b: Tensor | None,
) -> None:
    sides = ((logits_a, grad_a), (logits_b, grad_b))
    pair = (matrix_of(x, grad, None, inverse_temperature, mask, None, None) for x, grad in sides)
    rows = (kl_a, kl_b, max_a, log_sum_a, max_b, log_sum_b)
    mixture = library.Mixture(beta, None, *map(pointer, rows))
    library.loaded().ps_jensen_shannon_gradient(*pair, mixture, pointer(grad_divergence))
