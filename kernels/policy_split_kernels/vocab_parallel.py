"""A vocabulary that is split over the processes of a group: each holds the logits of its own columns.

Each process reads its columns once; what they add up to are vectors (N,), which two all-reduces combine, one of maxima
and one of sums. The gradient of a process's logits is its own: nothing is sent in backward.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from . import ops
from .autograd import statistics_rows
from .contract import ELSEWHERE, IGNORE_INDEX, RowStatistics, check_targets, valid_rows
from .outside_graphs import outside_graphs
from .watchers import check_unfollowed

_NO_COLUMN = -1  # to the kernels a bad target, which makes its row NaN


class VocabShard(NamedTuple):
    """Columns start to start + size of `total`, those of this process; `largest` is the largest size of all."""

    group: "dist.ProcessGroup"
    start: int
    size: int
    total: int
    largest: int


def vocab_shard(size: int, device: torch.device, group: "dist.ProcessGroup") -> VocabShard:
    """This process's columns, where the parts of the vocabulary lie in the order of the ranks; sizes may differ.

    One all-gather, and the host waits for it. All processes of the group raise ValueError if one of them has no column.
    """
    check_group(group)
    parts = list(torch.empty(dist.get_world_size(group), dtype=torch.int64, device=device).split(1))
    dist.all_gather(parts, torch.tensor([size], dtype=torch.int64, device=device), group=group)
    sizes: list[int] = torch.cat(parts).tolist()
    if min(sizes) < 1:
        raise ValueError(f"process_group: every rank must hold a part of the vocabulary, the sizes are {sizes}")
    return VocabShard(group, sum(sizes[: dist.get_rank(group)]), size, sum(sizes), max(sizes))


def check_group(group: object) -> None:
    if not dist.is_available():
        raise ValueError("process_group needs torch.distributed, which this build of PyTorch does not have")
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            f"process_group must be a torch.distributed.ProcessGroup that this process belongs to, "
            f"got {type(group).__name__}"
        )


def local_targets(targets: Tensor, valid: Tensor, shard: VocabShard) -> Tensor:
    """Targets (N,) as the kernels of this shard take them: its own column, ELSEWHERE, or IGNORE_INDEX if not valid.

    A target outside the whole vocabulary raises IndexError on a CPU, in every process; on a GPU its row becomes NaN.
    """
    known = (targets >= 0) & (targets < shard.total)
    check_targets(targets, valid, shard.total)
    column = targets - shard.start
    local = torch.where((column >= 0) & (column < shard.size), column, ELSEWHERE)
    return torch.where(valid, torch.where(known, local, _NO_COLUMN), IGNORE_INDEX)


def combined_statistics(
    statistics: RowStatistics,  # (N,) of this shard
    targets: Tensor,  # (N,) of `local_targets`
    inverse_temperature: Tensor,  # (1,) or (N,)
    valid: Tensor,  # (N,) bool
    group: "dist.ProcessGroup",
) -> RowStatistics:
    """The statistics of whole rows from those of their shards, the same in every process.

    A vocabulary that is -inf throughout gives NaN, and so does a NaN or +inf in any shard. Rows not valid are 0.
    """
    row_max = shard_max(statistics)
    dist.all_reduce(row_max, dist.ReduceOp.MAX, group=group)
    sums = shard_sums(statistics, targets, inverse_temperature, row_max)
    dist.all_reduce(sums, dist.ReduceOp.SUM, group=group)
    return statistics_of_sums(row_max, sums, valid, statistics.log_sum.dtype)


def shard_max(statistics: RowStatistics) -> Tensor:
    """(N,) float64: the maximum of each row, without the NaN, which an all-reduce may lose here; the sums show it."""
    row_max = statistics.row_max.double()
    return torch.where(row_max.isnan(), -torch.inf, row_max)


def shard_sums(statistics: RowStatistics, targets: Tensor, inverse_temperature: Tensor, row_max: Tensor) -> Tensor:
    """(3, N) float64, what this shard adds to sum of e^d, sum of d * e^d and d of the target.

    d = (x - row_max) / temperature with the maximum of the whole row. Float64 because the vectors are small: what is
    left of the error is that of the shards' own statistics.
    """
    logprobs, entropy, own_max, log_sum = (x.double() for x in statistics)
    nothing_finite = own_max == -torch.inf  # and no NaN: the kernels see to that
    log_part = log_sum + (own_max - row_max) * inverse_temperature.double()
    part = log_part.exp()
    moment = torch.where(part == 0, 0.0, part * (log_part - entropy))
    here = targets >= 0
    sums = torch.stack((part, moment, torch.where(here, logprobs + log_part, 0.0)))
    at_minus_inf = torch.zeros_like(sums)
    at_minus_inf[2] = torch.where(here, -torch.inf, 0.0)
    return torch.where(nothing_finite, at_minus_inf, sums)


def statistics_of_sums(row_max: Tensor, sums: Tensor, valid: Tensor, dtype: torch.dtype) -> RowStatistics:
    total, moment, of_target = sums
    log_sum = torch.where(total == 0, torch.nan, total.log())
    row_max = torch.where(total.isnan() & (row_max < torch.inf), torch.nan, row_max)
    rows = (of_target - log_sum, log_sum - moment / total, row_max, log_sum)
    return RowStatistics(*(torch.where(valid, x, 0.0).to(dtype) for x in rows))


def statistics_of_rows(
    logits: Tensor,  # (B, T, V), of this shard where there is a group
    targets: Tensor,  # (N,) of the whole vocabulary
    inverse_temperature: Tensor,  # (1,) or (N,)
    mask: Tensor | None,  # (N,)
    softcap: float | None,
    keep_mask: Tensor | None,  # (B, T, V)
    process_group: "dist.ProcessGroup | None",
) -> RowStatistics:
    """`reference.logprobs_entropy` of whole rows, differentiable in logits, which may be split over a group."""
    if process_group is None:
        return RowStatistics(*statistics_rows(logits, targets, inverse_temperature, mask, softcap, keep_mask))
    instead = "gather the logits and leave process_group out"
    check_unfollowed("a vocabulary split over a process_group", instead, logits, temperature=inverse_temperature)
    valid = valid_rows(targets, mask)
    return _statistics_of_split_rows(logits, targets, inverse_temperature, valid, softcap, keep_mask, process_group)


@outside_graphs  # torch.compile hangs while it traces these collectives (2.13)
def _statistics_of_split_rows(
    logits: Tensor,
    targets: Tensor,
    inverse_temperature: Tensor,
    valid: Tensor,
    softcap: float | None,
    keep_mask: Tensor | None,
    group: "dist.ProcessGroup",
) -> RowStatistics:
    shard = vocab_shard(logits.shape[-1], logits.device, group)
    local = local_targets(targets, valid, shard)
    return RowStatistics(*_sharded_statistics(logits, local, inverse_temperature, valid, softcap, keep_mask, group))


class _ShardedStatistics(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor,
        inverse_temperature: Tensor,
        valid: Tensor,
        softcap: float | None,
        keep_mask: Tensor | None,
        group: "dist.ProcessGroup",
    ) -> tuple[Tensor, ...]:
        rows = (logits.detach(), targets, inverse_temperature, None, softcap, keep_mask)
        own = RowStatistics(*ops.logprobs_entropy(*rows))
        whole = combined_statistics(own, targets, inverse_temperature, valid, group)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(whole.row_max)
        ctx.softcap = softcap
        _, entropy, row_max, log_sum = whole
        ctx.save_for_backward(logits, targets, inverse_temperature, keep_mask, row_max, log_sum, entropy)
        return tuple(whole)

    @staticmethod
    def backward(
        ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None, _: None, grad_lse: Tensor | None
    ) -> Any:
        nothing = (None,) * 6
        if grad_logprobs is None and grad_entropy is None and grad_lse is None:
            return None, *nothing
        if torch.is_grad_enabled():
            raise RuntimeError("a split vocabulary can be differentiated once: create_graph=True is not supported")
        logits, targets, inverse_temperature, keep_mask, row_max, log_sum, entropy = ctx.saved_tensors
        grads = (torch.zeros_like(entropy) if g is None else g.contiguous() for g in (grad_logprobs, grad_entropy))
        rows = (logits, targets, inverse_temperature, None, ctx.softcap, keep_mask)
        grad_lse = None if grad_lse is None else grad_lse.contiguous()
        return ops.logprobs_entropy_gradient(*rows, row_max, log_sum, entropy, *grads, grad_lse), *nothing


_sharded_statistics: Callable[..., tuple[Tensor, ...]] = _ShardedStatistics.apply
