"""Exact divergence between two distributions over the vocabulary, from logits of any leading shape."""

from typing import NamedTuple

from torch import Tensor

from .autograd import divergence_rows
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
    rows_a, rows_b = as_rows(logits_a), as_rows(logits_b)
    for name, a, b in (
        ("shape", tuple(logits_a.shape), tuple(logits_b.shape)),
        ("dtype", logits_a.dtype, logits_b.dtype),
        ("device", logits_a.device, logits_b.device),
    ):
        if a != b:
            error = TypeError if name == "dtype" else ValueError
            raise error(f"logits_a and logits_b must have the same {name}, got {a} and {b}")
    out = divergence_rows(
        rows_a, rows_b, inverse_temperature_vector(temperature, logits_a), mask_vector(mask, logits_a)
    )
    return ModeDivergence(*(x.view(logits_a.shape[:-1]) for x in out[:4]))
