"""Log-probs of K tokens of each row at the price of one: one read of the logits, one read and one write in backward."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from policy_split_kernels import followed, ops
from policy_split_kernels.rows import as_rows, inverse_temperature_vector


def several_logprobs(
    logits: Tensor,  # (..., V)
    index: Tensor,  # (..., K) int64
    valid: Tensor,  # (..., K) which of the tokens count
    temperature: float | Tensor,
) -> Tensor:
    """(..., K) nats, differentiable in the logits; 0 where a token does not count, NaN where it is none."""
    rows, inverse_temperature = as_rows(logits), inverse_temperature_vector(temperature, logits)
    several = (rows.shape[0] * rows.shape[1], index.shape[-1])
    tokens, counted = index.reshape(several), valid.reshape(several)
    known = ~counted | ((tokens >= 0) & (tokens < logits.shape[-1]))
    arguments = (torch.where(counted & known, tokens, 0), counted, known, inverse_temperature)
    if followed.asks_for_more((rows,), inverse_temperature):
        return _followed(rows, *arguments)[0].view(index.shape)
    return _several_logprobs(rows, *arguments).view(index.shape)


def _of_statistics(
    rows: Tensor, index: Tensor, known: Tensor, inverse_temperature: Tensor, row_max: Tensor, log_sum: Tensor
) -> Tensor:
    chosen = rows.gather(-1, index.view(*rows.shape[:2], index.shape[-1])).view(index.shape).to(row_max.dtype)
    logprobs = (chosen - row_max[:, None]) * inverse_temperature[:, None] - log_sum[:, None]
    return torch.where(known, logprobs, torch.nan)


def _row_arguments(index: Tensor, valid: Tensor, inverse_temperature: Tensor) -> tuple[Any, ...]:
    """Those of `logprobs_entropy`: the target is the first token, the mask whether any counts."""
    return index[:, 0].contiguous(), inverse_temperature, valid.any(-1), None, None


def _followed(rows: Tensor, index: Tensor, valid: Tensor, known: Tensor, inverse_temperature: Tensor) -> tuple[Tensor]:
    statistics = followed.statistics(rows, *_row_arguments(index, valid, inverse_temperature))
    logprobs = _of_statistics(rows, index, known, inverse_temperature, statistics.row_max, statistics.log_sum)
    return (torch.where(valid, logprobs, 0.0),)


class _SeveralLogprobs(torch.autograd.Function):
    """The kernels' statistics serve K tokens as they serve one; K numbers of a row's gradient are then replaced."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, index: Tensor, valid: Tensor, known: Tensor, inverse_temperature: Tensor
    ) -> Tensor:
        arguments = _row_arguments(index, valid, inverse_temperature)
        _, entropy, row_max, log_sum = ops.call(ops.logprobs_entropy, rows.detach(), *arguments)
        logprobs = _of_statistics(rows, index, known, inverse_temperature, row_max, log_sum)
        ctx.save_for_backward(rows, index, valid, known, inverse_temperature, row_max, log_sum, entropy, logprobs)
        return torch.where(valid, logprobs, 0.0)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        rows, index, valid, known, inverse_temperature, *statistics, logprobs = ctx.saved_tensors
        if followed.is_differentiated():
            arguments = (index, valid, known, inverse_temperature)
            return *followed.gradients(_followed, (rows,), arguments, (upstream,)), None, None, None, None
        upstream = torch.where(valid, torch.where(known, upstream, torch.nan), 0.0)
        read, total = valid.any(-1), upstream.sum(-1)
        grad = ops.call(
            ops.logprobs_entropy_gradient, rows.detach(), *_row_arguments(index, valid, inverse_temperature),
            *statistics, total, torch.zeros_like(total), None,
        )  # fmt: skip
        # The kernel gave all of the upstream gradient to the first token. A token that is named twice gets both.
        own = ((index[:, :, None] == index[:, None, :]) * upstream[:, None, :]).sum(-1)
        exact = (own - total[:, None] * logprobs.exp()) * inverse_temperature[:, None]
        exact = torch.where(read[:, None], exact, 0.0).to(grad.dtype)
        grad.flatten(0, 1).scatter_(-1, index, exact)
        return grad, None, None, None, None


_several_logprobs: Callable[..., Tensor] = _SeveralLogprobs.apply
