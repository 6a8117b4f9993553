"""Derivatives that arithmetic does not have where a logit is infinite: numbers that are 0 and have a given slope."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def sloped(x: Tensor, slope: Tensor) -> Tensor:
    """0, whose derivative in x is `slope`, whatever x is; NaN where x is. An upstream gradient of 0 stays 0."""
    if torch.compiler.is_compiling():  # which follows no jvp: the slope of an infinite x is lost
        finite = torch.where(x.isinf(), 0.0, x)
        return (finite - finite.detach()) * slope
    return _sloped(x, slope)


class _Sloped(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, slope: Tensor) -> Tensor:
        return torch.where(x.isnan(), x, 0.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        _, slope = inputs
        ctx.save_for_backward(slope)
        ctx.save_for_forward(slope)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (slope,) = ctx.saved_tensors
        return _times(slope, grad), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: Any) -> Tensor:
        (slope,) = ctx.saved_tensors
        return _times(slope, tangent)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, slope: Tensor) -> Any:
        sides = zip((x, slope), in_dims, strict=True)
        x, slope = (x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0) for x, dim in sides)
        return _sloped(x, slope.expand_as(x)), 0


def _times(slope: Tensor, x: Tensor) -> Tensor:
    return torch.where(x == 0, 0.0, slope * x)


_sloped: Callable[..., Tensor] = _Sloped.apply
