"""Columns of one process where a vocabulary is split, and what is compared with the whole."""

import torch
import torch.distributed as dist

# 2053: a prime just above the CPU's tile of 2048.
SIZES = {1: [(7,)], 2: [(1, 36), (2053, 11)], 4: [(9, 1, 20, 7), (3, 2053, 1, 40)]}
# Of float32 statistics about 10 large, rounded in each shard and once more together.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6}
ROUNDING = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}


class Shard:
    """What this process holds of a vocabulary whose parts have these sizes."""

    def __init__(self, sizes, group):
        self.group, self.sizes, rank = group, sizes, dist.get_rank(group)
        self.start = sum(sizes[:rank])
        self.columns = slice(self.start, self.start + sizes[rank])

    def leaf(self, logits):
        return logits[..., self.columns].detach().requires_grad_()

    def options(self, options):
        """Those of this process: its columns of what has columns."""
        keep = options.get("keep_mask")
        kept = {} if keep is None else {"keep_mask": keep[..., self.columns]}
        return {**options, **kept, "process_group": self.group}


def assert_same_everywhere(x, group):
    """The same bits on every rank."""
    x = x.detach().double().nan_to_num(nan=12345.0, posinf=1e300, neginf=-1e300)
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, x, group=group)
    assert all(torch.equal(part, parts[0]) for part in parts)


def assert_close(actual, expected, tolerance, what):
    assert actual.shape == expected.shape, what
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda m: f"{what}: {m}"
    )


def random_case(sizes, dtype, seed, shape=(4, 3), scale=3.0):
    """logits (..., V) and targets, of which each part of the vocabulary has some."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(sizes)
    logits = (torch.randn(*shape, total, generator=generator, dtype=torch.float64) * scale).to(dtype)
    ends = torch.tensor(sizes).cumsum(0)
    rows = torch.Size(shape).numel()
    owner = torch.arange(rows) % len(sizes)
    within = torch.rand(rows, generator=generator)
    sizes_of = torch.tensor(sizes)[owner]
    targets = ends[owner] - sizes_of + (within * sizes_of).long()
    return logits, targets.view(shape), generator
