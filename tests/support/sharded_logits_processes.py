"""Run by test_sharded_logits in each of two processes: logits that are DTensors, against whole ones."""

import sys

import pytest
import torch
import torch.distributed as dist
from processes import SAYS
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from policy_split import dual_mode_loss, logprobs_and_entropy, logprobs_entropy_lse, mode_divergence
from policy_split.drop_in import trl

SHAPE = (3, 5, 37)  # two processes: sizes differ along every axis
LAYOUTS = (Shard(0), Shard(1), Shard(2), Replicate())


def tensors():
    generator = torch.Generator().manual_seed(5)
    logits = 3 * torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    targets = torch.randint(SHAPE[-1], SHAPE[:-1], generator=generator)
    targets[0, 1] = -100
    keep = torch.rand(SHAPE, generator=generator) > 0.2
    keep.scatter_(-1, targets.clamp(min=0)[..., None], True)
    mask = torch.rand(SHAPE[:-1], generator=generator) > 0.2
    temperature = 0.5 + torch.rand(SHAPE[:-1], generator=generator, dtype=torch.float64)
    return logits, targets, {"mask": mask, "keep_mask": keep, "temperature": temperature}


def check(mesh, placement, function, everything):
    logits, targets, options = tensors()
    options = options if everything else {}
    upstream = torch.randn(SHAPE[:-1], generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    leaf = logits.clone().requires_grad_()
    expected = function(leaf, targets, **options)
    (right,) = torch.autograd.grad(sum(((k + 1) * upstream * x).sum() for k, x in enumerate(expected)), leaf)

    tokens = Replicate() if placement == Shard(2) else placement
    layouts = {"keep_mask": placement}
    shards = {k: distribute_tensor(x, mesh, [layouts.get(k, tokens)]) for k, x in options.items()}
    whole = distribute_tensor(logits, mesh, [placement]).requires_grad_()
    out = function(whole, distribute_tensor(targets, mesh, [tokens]), **shards)
    weights = distribute_tensor(upstream, mesh, [tokens])
    (gradient,) = torch.autograd.grad(sum(((k + 1) * weights * x).sum() for k, x in enumerate(out)), whole)
    assert type(out) is type(expected)
    for x, y in zip(out, expected, strict=True):
        assert isinstance(x, DTensor)
        assert (x.placements, x.shape) == ((tokens,), y.shape)
        torch.testing.assert_close(x.full_tensor(), y)
    assert gradient.placements == (placement,)
    torch.testing.assert_close(gradient.full_tensor(), right)


def check_refused(mesh):
    logits, targets, _ = tensors()
    rows = distribute_tensor(logits, mesh, [Shard(0)])
    own_targets = distribute_tensor(targets, mesh, [Shard(0)])
    for call, says in (
        (lambda: logprobs_and_entropy(rows, targets), "targets is a plain tensor, and logits a DTensor"),
        (lambda: logprobs_and_entropy(rows, distribute_tensor(targets, mesh, [Shard(1)])), "targets is a DTensor with"),
        (lambda: logprobs_and_entropy(rows, own_targets, process_group=dist.group.WORLD), "says itself"),
        (lambda: logprobs_and_entropy(logits, own_targets), "targets is a DTensor .* plain tensor is needed"),
        (lambda: mode_divergence(rows, rows), r"logits is a DTensor .*to_local\(\)"),
        (lambda: trl.entropy_from_logits(rows), "logits is a DTensor"),
        (lambda: dual_mode_loss(rows, targets, advantages=targets, mode=targets), "logits is a DTensor"),
    ):
        with pytest.raises(ValueError, match=says):
            call()
    partial = DTensor.from_local(logits, mesh, [Partial()])
    with pytest.raises(ValueError, match="redistribute"):
        logprobs_and_entropy(partial, distribute_tensor(targets, mesh, [Replicate()]))


def main(rank, processes, file):
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=int(rank), world_size=int(processes))
    torch.set_num_threads(1)
    mesh = init_device_mesh("cpu", (int(processes),))
    for placement in LAYOUTS:
        check(mesh, placement, logprobs_and_entropy, everything=True)
        check(mesh, placement, logprobs_entropy_lse, everything=False)
    check_refused(mesh)
    dist.barrier()
    dist.destroy_process_group()
    print(SAYS.format(rank=rank, processes=processes))


if __name__ == "__main__":
    main(*sys.argv[1:])
