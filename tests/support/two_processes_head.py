"""Run by test_lm_head in two processes: a patched model under DDP and FSDP2 against one process with all the rows."""

import copy
import sys
from functools import partial

import tiny
import torch
import torch.distributed as dist
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from policy_split import dual_mode_loss, linear_dual_mode_loss
from policy_split.models.lm_head import patch_lm_head

STEPS, ROWS, LENGTH, KEPT = 2, 4, 9, 5


def batch(rows):
    """Of some of the four rows; a mask that leaves the ranks different numbers of tokens."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(8, len(tiny.WORDS), (ROWS, LENGTH), generator=generator)
    mask = torch.arange(KEPT) < torch.tensor([5, 2, 4, 1])[:, None]
    advantages, old = torch.randn(2, ROWS, KEPT, generator=generator)
    mode = torch.tensor([0, 1, 0, 1])[:, None].expand(-1, KEPT)
    tokens = {"targets": ids[:, -KEPT:], "advantages": advantages, "mode": mode, "mask": mask}
    tokens |= {"old_logprobs": old.sigmoid() - 4, "weights": mask / mask.sum()}
    return ids[rows], {name: x[rows] for name, x in tokens.items()} | {"entropy_coef": (0.1, 0.3)}


def whole(x):
    return x.full_tensor() if isinstance(x, DTensor) else x


def train(model, bare, loss_of):
    """Gradients of the first step and weights after the last, of every parameter."""
    optimizer = torch.optim.AdamW(bare.parameters(), lr=1e-2, eps=1e-3)
    gradients = {}
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss_of(model).backward()
        gradients = gradients or {name: whole(p.grad).clone() for name, p in bare.named_parameters()}
        optimizer.step()
    return gradients, {name: whole(p.detach()).clone() for name, p in bare.named_parameters()}


def global_loss(model):
    ids, tokens = batch(slice(None))
    return dual_mode_loss(model(input_ids=ids, logits_to_keep=KEPT).logits, **tokens).loss


def rank_loss(model):
    rank, world = dist.get_rank(), dist.get_world_size()
    ids, tokens = batch(slice(rank * ROWS // world, (rank + 1) * ROWS // world))
    tokens["weights"] = tokens["weights"] * world  # the wrappers take the mean over the ranks
    head_fn = partial(linear_dual_mode_loss, chunk_bytes=1000, **tokens)
    return model(input_ids=ids, logits_to_keep=KEPT, head_fn=head_fn).loss


def ddp(model):
    return DistributedDataParallel(model)


def root(model):
    return fully_shard(model)


def layers_and_head(model):
    for module in (*model.model.layers, model.lm_head):
        fully_shard(module)
    return fully_shard(model)


def agree(found, expected, what):
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{what} {n}: {m}")
        ranks = [torch.empty_like(found[name]) for _ in range(dist.get_world_size())]
        dist.all_gather(ranks, found[name].contiguous())
        assert torch.equal(ranks[0], ranks[1]), (what, name)


def keeps_float32(wrap):
    """What FSDP2 casts: hidden states and weights, and nothing that stands in head_fn."""
    seen = []

    def head_fn(hidden, weight, **options):
        seen.append((hidden.dtype, weight.dtype, type(weight)))
        return linear_dual_mode_loss(hidden, weight, **tokens, **options)

    ids, tokens = batch(slice(0, 2))
    model, policy = tiny.model(), MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    patch_lm_head(model)
    if wrap == "head":
        fully_shard(model.lm_head, mp_policy=policy)
    fully_shard(model, mp_policy=policy)
    out = model(input_ids=ids, logits_to_keep=KEPT, head_fn=partial(head_fn))
    out.loss.backward()
    assert [dtypes[:2] for dtypes in seen] == [(torch.bfloat16, torch.bfloat16)]
    assert not issubclass(seen[0][2], DTensor)
    assert out.result.logprobs.dtype == torch.float32
    assert tokens["advantages"].dtype == torch.float32
    # the ratio is of float32 numbers: at a distance that bfloat16 does not have
    tokens["old_logprobs"] = out.result.logprobs.detach() + 1e-3
    tokens["entropy_coef"] = (0.0, 0.0)
    again = model(input_ids=ids, logits_to_keep=KEPT, head_fn=partial(head_fn)).result
    assert torch.equal(again.logprobs, out.result.logprobs)
    ratio = (again.logprobs - tokens["old_logprobs"]).exp()
    expected = -(tokens["weights"] * ratio * tokens["advantages"]).sum()
    torch.testing.assert_close(again.loss, expected, rtol=1e-6, atol=1e-7)


dist.init_process_group("gloo")
for tied in (False, True):
    model = tiny.model(tie_word_embeddings=tied).double()
    expected = train(*[copy.deepcopy(model)] * 2, global_loss)
    for wrap in (ddp, root) if tied else (ddp, root, layers_and_head):
        bare = patch_lm_head(copy.deepcopy(model))
        found = train(wrap(bare), bare, rank_loss)
        agree(found[0], expected[0], f"{wrap.__name__}, gradient of")
        agree(found[1], expected[1], f"{wrap.__name__}, weight of")
for wrap in ("root", "head"):
    keeps_float32(wrap)
dist.barrier()
dist.destroy_process_group()
print("done", file=sys.stderr)
