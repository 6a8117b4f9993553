"""Exact divergence between two distributions over the vocabulary, from logits of any leading shape."""

from typing import NamedTuple

from torch import Tensor

from .autograd import divergence_rows, mixture_rows
from .rows import as_rows, inverse_temperature_vector, mask_vector


class ModeDivergence(NamedTuple):
    """KL(a || b), KL(b || a), H(a) and H(b) of each pair of rows, `(...)`, in nats, differentiable in both."""

    kl_ab: Tensor
    kl_ba: Tensor
    entropy_a: Tensor
    entropy_b: Tensor


def mode_divergence(
    logits_a: Tensor,  # (..., V)
    logits_b: Tensor,  # (..., V)
    *,
    temperature: float | Tensor = 1.0,
    mask: Tensor | None = None,  # (...)
) -> ModeDivergence:
    """Exact KL in both directions and both entropies of each pair of distributions, in nats, differentiable in both.

    The same as::

        a, b = (torch.log_softmax(x.float() / temperature, -1) for x in (logits_a, logits_b))
        kl_ab, kl_ba = (a.exp() * (a - b)).sum(-1), (b.exp() * (b - a)).sum(-1)
        entropy_a, entropy_b = -(a.exp() * a).sum(-1), -(b.exp() * b).sum(-1)

    Each matrix is read once, and in backward read once and written once. Shapes: logits `(..., V)`, equal, of one dtype
    (float32, bfloat16, float16 or float64); mask `(...)`; temperature a number or `(...)`. Returns float32 (float64 for
    float64 logits) of shape `(...)`. Rows whose mask is 0 are not read: outputs and gradients are 0 there.
    A token whose logit is -inf in both rows adds nothing; -inf in one of them alone makes the KL towards it +inf, and
    the gradient of that KL in the row that it averages over NaN.
    Raises TypeError or ValueError for wrong dtypes, shapes or devices.
    Source: the KL between the modes of arXiv 2604.11510 section 3, over the vocabulary instead of the sampled token.
    """
    rows_a, rows_b = _pair_of_rows(logits_a, logits_b)
    out = divergence_rows(
        rows_a, rows_b, inverse_temperature_vector(temperature, logits_a), mask_vector(mask, logits_a)
    )
    return ModeDivergence(*(x.view(logits_a.shape[:-1]) for x in out[:4]))


def jensen_shannon_divergence(
    logits_a: Tensor,  # (..., V)
    logits_b: Tensor,  # (..., V)
    *,
    beta: float = 0.5,
    temperature: float | Tensor = 1.0,
    mask: Tensor | None = None,  # (...)
) -> Tensor:
    """Generalised Jensen-Shannon divergence of each pair of distributions, in nats, differentiable in both.

    The same as::

        p, q = (torch.softmax(x.float() / temperature, -1) for x in (logits_a, logits_b))
        m = (1 - beta) * p + beta * q
        divergence = (1 - beta) * KL(p || m) + beta * KL(q || m)  # KL(p || m) = (p * (p / m).log()).sum(-1)

    for 0 < beta < 1. At the ends, where that is 0, it stands for its limit over beta (1 - beta), as in on-policy
    distillation with a student a and a teacher b: `beta=0` is KL(q || p), forward, `beta=1` is KL(p || q), reverse.
    Shapes: logits `(..., V)`, equal, of one dtype (float32, bfloat16, float16 or float64); mask `(...)`; temperature a
    number or `(...)`. Returns float32 (float64 for float64 logits) of shape `(...)`. Rows whose mask is 0 are not read:
    outputs and gradients are 0 there. Each matrix is read twice, the second time from the cache, and in backward read
    once and written once, if its gradient is wanted.
    A token whose logit is -inf in both rows adds nothing. -inf in one of them is finite for 0 < beta < 1, at the ends
    as in `mode_divergence`.
    Raises TypeError or ValueError for wrong dtypes, shapes or devices, and for a beta that is not between 0 and 1.
    Source: arXiv 2306.13649 eq. 1 (GKD), whose P is b.
    """
    if not isinstance(beta, (int, float)):
        raise TypeError(f"beta must be a number, got {type(beta).__name__}")
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must be between 0 and 1, got {beta}")
    if beta in (0, 1):
        return mode_divergence(logits_a, logits_b, temperature=temperature, mask=mask)[0 if beta == 1 else 1]
    rows = _pair_of_rows(logits_a, logits_b)
    arguments = (inverse_temperature_vector(temperature, logits_a), mask_vector(mask, logits_a))
    return mixture_rows(*rows, *arguments, float(beta))[0].view(logits_a.shape[:-1])


def _pair_of_rows(logits_a: Tensor, logits_b: Tensor) -> tuple[Tensor, Tensor]:
    rows = as_rows(logits_a), as_rows(logits_b)
    for name, a, b in (
        ("shape", tuple(logits_a.shape), tuple(logits_b.shape)),
        ("dtype", logits_a.dtype, logits_b.dtype),
        ("device", logits_a.device, logits_b.device),
    ):
        if a != b:
            error = TypeError if name == "dtype" else ValueError
            raise error(f"logits_a and logits_b must have the same {name}, got {a} and {b}")
    return rows
