"""Run by test_linear_parallel in each process of a group: an LM head whose vocabulary, or weight, is split."""

import sys

import pytest
import torch
import torch.distributed as dist
from linear_cases import Head, relative_error
from processes import SAYS
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode

SIZES = {2: [(13, 44), (1, 56)], 4: [(20, 1, 30, 6), (2, 3, 51, 1)]}
CHUNKS = (None, 6 * 64 * 4)  # bytes: the second is of six tokens of 64 float32 logits, more of a smaller part
ROUNDING = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}


def loss_of(head, function, **options):
    if function == "statistics":
        logprobs, entropy = head.statistics(**options)
        return (logprobs * head.tokens["advantages"] + entropy).sum(), (logprobs.detach(), entropy.detach())
    arguments = (head.policy_loss,) if function == "token_loss" else ()
    out = getattr(head, function)(*arguments, **options)
    return out.loss, (out.logprobs, out.entropy)


def split(head, sizes):
    """The head with this rank's rows of the weight and the bias."""
    rank = dist.get_rank()
    rows = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    head.weight, head.bias = (x.detach()[rows].clone().requires_grad_() for x in (head.weight, head.bias))
    return rows


class AllReduced(TorchDispatchMode):
    """Sizes of what is all-reduced."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "allreduce" in func.name():
            self.sizes += [x.numel() for x in args[0]]
        return func(*args, **kwargs or {})


def assert_same_everywhere(x):
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.contiguous())
    assert all(torch.equal(part, parts[0]) for part in parts)


def check_split_vocabulary(sizes, dtypes):
    group = dist.group.WORLD
    for dtype in dtypes:
        for function in ("dual_mode", "token_loss", "statistics"):
            for chunk_bytes in CHUNKS:
                whole, own = Head(dtype=dtype), Head(dtype=dtype)
                expected, vectors = loss_of(whole, function)
                right = torch.autograd.grad(expected, whole.leaves)
                rows = split(own, sizes)
                with AllReduced() as sent:
                    loss, own_vectors = loss_of(own, function, process_group=group, chunk_bytes=chunk_bytes)
                    hidden, weight, bias = torch.autograd.grad(loss, own.leaves)
                    again = [x.clone() for x in (hidden, weight, bias)]
                wide = 1e-12 if dtype == torch.float64 else 1e-5
                torch.testing.assert_close(loss, expected, rtol=wide, atol=wide)
                torch.testing.assert_close(own_vectors, vectors, rtol=wide, atol=wide)
                pairs = ((hidden, right[0]), (weight, right[1][rows]), (bias, right[2][rows]))
                for ours, theirs in pairs:
                    error = (ours.double() - theirs.double()).norm() / max(1e-9, theirs.double().norm())
                    assert error < 2 * ROUNDING[dtype], (dtype, function, chunk_bytes, error)
                assert sent.sizes.count(own.hidden.numel()) == 1  # the gradient of hidden, once
                for x in (loss.detach(), hidden, *own_vectors):
                    assert_same_everywhere(x)
                assert all(x.isfinite().all() for x in again)


def check_sides(sizes):
    """Nothing is sent for a gradient that nobody wants; no gradients at all; a second backward; a sequence's ratio."""
    group, own = dist.group.WORLD, Head()
    split(own, sizes)
    own.hidden.requires_grad_(False)
    with AllReduced() as sent:
        loss_of(own, "dual_mode", process_group=group)[0].backward()
    assert own.hidden.numel() not in sent.sizes
    with torch.no_grad():
        assert not loss_of(own, "dual_mode", process_group=group)[0].requires_grad
    own.hidden.requires_grad_()
    loss, _ = loss_of(own, "dual_mode", process_group=group)
    first = [x.clone() for x in torch.autograd.grad(loss, own.leaves, retain_graph=True)]
    assert relative_error(torch.autograd.grad(2 * loss, own.leaves), [2 * x for x in first]) < 1e-6
    whole = Head()
    tokens = {name: x[:20].view(4, 5) for name, x in own.tokens.items()} | {"mask": own.mask[:20].view(4, 5)}
    losses = []
    for head, options in ((whole, {}), (own, {"process_group": group})):
        targets, head.targets = head.targets, head.targets[:20].view(4, 5)
        hidden = head.hidden[:20].view(4, 5, -1)
        losses.append(head.dual_mode(hidden=hidden, ratio_level="sequence", **tokens, **options).loss)
        head.targets = targets
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(x, head.hidden)[0] for x, head in zip(losses, (whole, own), strict=True)]
    assert relative_error(gradients[1:], gradients[:1]) < 1e-5


def check_errors(sizes):
    own = Head()
    split(own, sizes)
    own.targets[7] = 57
    own.mask[7] = True
    with pytest.raises(IndexError, match=r"targets\[7\] = 57 is outside the vocabulary of 57"):
        own.dual_mode(process_group=dist.group.WORLD)
    own.targets[7] = 56
    assert own.dual_mode(process_group=dist.group.WORLD).loss.isfinite()


def check_dtensor_in_place(mesh):
    """Rows of a DTensor as they lie: what tensor parallelism makes of a weight."""
    whole, own = Head(), Head()
    expected, _ = loss_of(whole, "dual_mode")
    right = torch.autograd.grad(expected, whole.leaves)
    own.weight, own.bias = (distribute_tensor(x.detach(), mesh, [Shard(0)]).requires_grad_() for x in own.leaves[1:])
    for hidden in (own.hidden, distribute_tensor(own.hidden.detach(), mesh, [Replicate()]).requires_grad_()):
        own.hidden = hidden
        loss, _ = loss_of(own, "dual_mode", process_group=mesh.get_group())
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
        gradients = torch.autograd.grad(loss, own.leaves)
        assert all(x.placements == (Shard(0),) for x in gradients[1:])
        assert relative_error([x.full_tensor() if isinstance(x, DTensor) else x for x in gradients], right) < 1e-5


def check_dtensor_gathered(mesh, placements):
    """Each rank has tokens of its own, as with FSDP: gradients are the mean over the ranks."""
    rank, world = dist.get_rank(), dist.get_world_size()
    _, weight, bias = Head().leaves
    weight = distribute_tensor(weight.detach(), mesh, placements)
    bias = distribute_tensor(bias.detach(), mesh, [Shard(0) if x.is_shard() else x for x in placements])
    weight.requires_grad_()
    bias.requires_grad_()
    means = [torch.zeros_like(x) for x in Head().leaves[1:]]
    for other in range(world):
        plain = Head(seed=other)
        plain.weight, plain.bias = Head().weight, Head().bias
        loss, _ = loss_of(plain, "token_loss")
        hidden, *gradients = torch.autograd.grad(loss, plain.leaves)
        if other == rank:
            expected, right_hidden = loss, hidden
        for mean, gradient in zip(means, gradients, strict=True):
            mean += gradient / world
    own = Head(seed=rank)
    own.weight, own.bias = weight, bias
    loss, _ = loss_of(own, "token_loss")
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert relative_error([own.hidden.grad], [right_hidden]) < 1e-6
    assert weight.grad.placements == weight.placements
    assert relative_error([weight.grad.full_tensor(), bias.grad.full_tensor()], means) < 1e-6


def check_dtensor_errors(mesh):
    def wrong(says, *, hidden=None, weight=None, **options):
        head = Head(bias=False)
        head.hidden = head.hidden if hidden is None else distribute_tensor(head.hidden.detach(), mesh, [hidden])
        head.weight = head.weight if weight is None else weight
        with pytest.raises(ValueError, match=says):
            head.dual_mode(**options)

    plain = Head().weight.detach()
    wrong("hidden is a DTensor", hidden=Shard(0))
    columns = distribute_tensor(plain, mesh, [Shard(1)])
    wrong("its rows must be sharded along that group", weight=columns, process_group=mesh.get_group())
    replicated = distribute_tensor(plain, mesh, [Replicate()])
    wrong("its rows must be sharded along that group", weight=replicated, process_group=mesh.get_group())
    wrong("a partial sum is no weight", weight=DTensor.from_local(plain, mesh, [Partial()]))
    alone = [dist.new_group([k]) for k in range(dist.get_world_size())][dist.get_rank()]
    rows = distribute_tensor(plain, mesh, [Shard(0)])
    wrong("its rows must be sharded along that group", weight=rows, process_group=alone)


def main(rank, processes, file):
    world = int(processes)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=int(rank), world_size=world)
    torch.set_num_threads(1)
    for sizes, dtypes in zip(SIZES[world], (list(ROUNDING), [torch.float32]), strict=True):
        check_split_vocabulary(sizes, dtypes)
        check_sides(sizes)
        check_errors(sizes)
    mesh = init_device_mesh("cpu", (world,))
    check_dtensor_in_place(mesh)
    for placement in (Shard(0), Shard(1), Replicate()):
        check_dtensor_gathered(mesh, [placement])
    check_dtensor_errors(mesh)
    if world == 4:
        check_dtensor_gathered(init_device_mesh("cpu", (2, 2)), [Replicate(), Shard(0)])
    dist.barrier()
    dist.destroy_process_group()
    print(SAYS.format(rank=rank, processes=processes))


if __name__ == "__main__":
    main(*sys.argv[1:])
