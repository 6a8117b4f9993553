"""Run by test_vocab_parallel, once in each process of a group: `vocab_parallel_processes.py RANK PROCESSES FILE`.

Every process makes the same logits and gives away all columns but its own. What it gets back must be what the unsplit
operation says of the whole, on every rank the same bits, and its gradient those columns of the whole gradient.
"""

import re
import sys
import warnings

import formulas
import pytest
import torch
import torch.distributed as dist
from processes import SAYS
from vocab_shards import ROUNDING, SIZES, TOLERANCE, Shard, assert_close, assert_same_everywhere, random_case

from policy_split.losses.dual_mode import DualModeLoss, dual_mode_loss
from policy_split_kernels.contract import ELSEWHERE
from policy_split_kernels.logprobs import logprobs_and_entropy
from policy_split_kernels.vocab_parallel import vocab_shard

INF, NAN = float("inf"), float("nan")
COEFFICIENTS = {"entropy_coef": (0.0, 0.02, -0.2), "kl_coef": (0.0, 0.05, 0.3)}


def check_statistics(shard, logits, targets, what, **options):
    whole, own = logits.detach().requires_grad_(), shard.leaf(logits)
    expected = logprobs_and_entropy(whole, targets, **options)
    actual = logprobs_and_entropy(own, targets, **shard.options(options))
    tolerance = TOLERANCE[expected.logprobs.dtype]
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(targets.shape, generator=generator).to(expected.logprobs) for _ in range(2)]
    for name, x, y in zip(expected._fields, actual, expected, strict=True):
        assert x.dtype == y.dtype
        assert_close(x, y, tolerance, f"{what}: {name}")
        assert_same_everywhere(x, shard.group)
    for kept in ((0,), (1,), (0, 1)):
        grads = [upstream[k] for k in kept]
        (g,) = torch.autograd.grad([actual[k] for k in kept], own, grads, retain_graph=True)
        (h,) = torch.autograd.grad([expected[k] for k in kept], whole, grads, retain_graph=True)
        assert_close(g, h[..., shard.columns], ROUNDING[logits.dtype], f"{what}: gradient of {kept}")
    return actual


def check_truth(actual, logits, targets, what, **options):
    """Float64 in PyTorch's own operations."""
    flat = {name: x.reshape(-1) if name == "temperature" and torch.is_tensor(x) else x for name, x in options.items()}
    if "keep_mask" in flat:
        flat["keep_mask"] = flat["keep_mask"].reshape(-1, logits.shape[-1])
    rows = logits.detach().double().reshape(-1, logits.shape[-1])
    exact = formulas.statistics(rows, targets.reshape(-1), **flat)
    for name, x, y in zip(actual._fields, actual, exact, strict=True):
        assert_close(x.reshape(-1), y, TOLERANCE[actual.logprobs.dtype], f"{what}: {name} against the truth")


def check_options(shard):
    for k, dtype in enumerate((torch.float32, torch.bfloat16, torch.float16, torch.float64)):
        logits, targets, generator = random_case(shard.sizes, dtype, seed=k)
        temperature = torch.rand(targets.shape, generator=generator) + 0.5
        keep = torch.rand(logits.shape, generator=generator) > 0.4
        keep.scatter_(-1, targets[..., None], True)
        cases = {
            "plain": {}, "a temperature": {"temperature": 0.7}, "one for each row": {"temperature": temperature},
            "softcap": {"softcap": 5.0}, "keep_mask": {"keep_mask": keep},
            "all of them": {"temperature": temperature, "softcap": 5.0, "keep_mask": keep},
        }  # fmt: skip
        for name, options in cases.items():
            actual = check_statistics(shard, logits, targets, f"{dtype} {name}", **options)
            check_truth(actual, logits, targets, f"{dtype} {name}", **options)


def check_rows_that_do_not_count(shard):
    logits, targets, generator = random_case(shard.sizes, torch.float32, seed=11)
    mask = torch.rand(targets.shape, generator=generator) > 0.4
    mask[0, 0], mask[1, 1] = False, True
    logits[0, 0] = NAN
    targets[1, 1], targets[0, 0] = -100, 10**9
    actual = check_statistics(shard, logits, targets, "mask", mask=mask)
    counted = mask & (targets != -100)
    assert all((x[~counted] == 0).all() and (x[counted] != 0).all() for x in actual)


def check_infinite(shard):
    """One row for each numerical rule; the first part of the vocabulary and the last differ in all of them."""
    first, last = slice(0, shard.sizes[0]), slice(sum(shard.sizes[:-1]), None)
    for dtype in (torch.float32, torch.float64):
        logits, targets, _ = random_case(shard.sizes, dtype, seed=5, shape=(13,))
        targets[:] = last.start
        logits[0, first] = -INF
        logits[1, first], targets[1] = -INF, 0  # the target's part holds nothing else
        logits[2] = -INF
        logits[3, -1], targets[3] = NAN, 0
        logits[4, -1], targets[4] = INF, 0
        logits[5, first] += 1e4
        logits[6, first] -= 1e4
        logits[7] += 1e4
        logits[8, 0], targets[8] = -INF, 0
        logits[9, : last.start] = -INF  # one part holds everything
        logits[10] = -INF
        logits[10, last.start] = 2.0  # one token does
        logits[11] = -INF
        logits[11, -1] = NAN
        logits[12, first] = 0.0
        logits[12, last] = -1e30 if dtype == torch.float32 else -1e300
        actual = check_statistics(shard, logits, targets, f"infinite {dtype}")
        if len(shard.sizes) > 1:
            logprobs, entropy = actual
            assert (logprobs[[1, 8]] == -INF).all()
            assert entropy[[0, 1, 8, 9]].isfinite().all()
            assert all(x[[2, 3, 4, 11]].isnan().all() for x in actual)
            assert logprobs[10] == entropy[10] == 0
            own = shard.leaf(logits)
            out = logprobs_and_entropy(own, targets, process_group=shard.group)
            (gradient,) = torch.autograd.grad([x.sum() for x in out], own)
            hidden = torch.zeros(13, dtype=torch.bool)
            hidden[[2, 3, 4, 11]] = True
            assert torch.equal(gradient.isnan().any(-1), hidden)  # on every rank, whoever holds the NaN


def loss_arguments(logits, targets, generator, old=True, ref=False, sampler=False, keep=False):
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32

    def normal(scale=1.0):
        return (torch.randn(targets.shape, generator=generator) * scale).to(wide)

    exact = logits.double().log_softmax(-1).gather(-1, targets[..., None])[..., 0].to(wide)
    tokens = {"advantages": normal(), "mode": torch.randint(3, targets.shape, generator=generator)}
    behaviour = {name: exact + normal(0.4) for name in ("old_logprobs", "ref_logprobs", "sampler_logprobs")}
    wanted = {"old_logprobs": old, "ref_logprobs": ref, "sampler_logprobs": sampler}
    kept = torch.rand(logits.shape, generator=generator) > 0.4
    kept.scatter_(-1, targets[..., None], True)
    return tokens | {name: x for name, x in behaviour.items() if wanted[name]} | ({"keep_mask": kept} if keep else {})


LOSSES = {
    "clip": ({"ref": True}, {"clip_delta": 1.35}),
    "clip on policy": ({"old": False}, {}),
    "cispo": ({"sampler": True, "ref": True}, {"surrogate": "cispo", "sampler_cap": 1.1}),
    "sequence": ({"ref": True, "sampler": True}, {"ratio_level": "sequence", "clip_low": 0.05}),
    "sequence on policy": ({"old": False}, {"ratio_level": "sequence"}),
    "all options": ({"keep": True, "ref": True}, {"softcap": 5.0, "temperature": 0.8}),
}


def check_losses(shard):
    for k, (name, (wanted, settings)) in enumerate(LOSSES.items()):
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            logits, targets, generator = random_case(shard.sizes, dtype, seed=20 + k)
            tokens = loss_arguments(logits, targets, generator, **wanted)
            mask = torch.rand(targets.shape, generator=generator) > 0.3
            targets[2, 1] = -100
            check_loss(shard, f"{name} {dtype}", logits, targets, mask, tokens, settings)


def check_loss(shard, what, logits, targets, mask, tokens, settings):
    whole, own = logits.detach().requires_grad_(), shard.leaf(logits)
    settings = COEFFICIENTS | settings
    expected = dual_mode_loss(whole, targets, mask=mask, **tokens, **settings)
    split = shard.options(tokens)
    group = split.pop("process_group")
    actual = DualModeLoss(**settings, process_group=group)(own, targets, mask=mask, **split)
    tolerance = 4 * TOLERANCE[actual.logprobs.dtype]
    for name, x, y in zip(expected._fields, actual, expected, strict=True):
        assert_close(x, y, tolerance, f"{what}: {name}")
        assert_same_everywhere(x, shard.group)
    upstream = torch.tensor(-0.5).to(actual.loss)
    (g,) = torch.autograd.grad(actual.loss, own, upstream, retain_graph=True)
    (h,) = torch.autograd.grad(expected.loss, whole, upstream)
    assert g.any() or not h[..., shard.columns].any(), what
    assert_close(g, h[..., shard.columns], ROUNDING[logits.dtype], f"{what}: gradient")
    (again,) = torch.autograd.grad(actual.loss, own, upstream)
    assert torch.equal(g, again)
    check_loss_truth(actual, logits, targets, mask, tokens, settings, tolerance, what)


def check_loss_truth(actual, logits, targets, mask, tokens, settings, tolerance, what):
    valid = mask & (targets != -100)
    flat = {name: x.reshape(-1) for name, x in tokens.items() if name != "keep_mask"}
    if "keep_mask" in tokens:
        flat["keep_mask"] = tokens["keep_mask"].reshape(-1, logits.shape[-1])
    losses, *rest = formulas.loss(
        logits.double().reshape(-1, logits.shape[-1]), targets.reshape(-1), valid=valid.reshape(-1),
        weights=1 / valid.sum().double(), rows_per_sequence=targets.shape[-1], **flat, **settings,
    )  # fmt: skip
    for name, x, y in zip(actual._fields, actual, (losses.sum(), *rest), strict=True):
        assert_close(x.reshape(y.shape), y, tolerance, f"{what}: {name} against the truth")


def check_errors(shard):
    logits, targets, generator = random_case(shard.sizes, torch.float32, seed=30)
    total, group = sum(shard.sizes), {"process_group": shard.group}
    tokens = loss_arguments(logits, targets, generator) | COEFFICIENTS
    own = shard.leaf(logits)
    for bad in (-1, total, ELSEWHERE):
        wrong = targets.clone()
        wrong[1, 0] = bad
        message = re.escape(f"targets[1, 0] = {bad} is outside the vocabulary of {total};")
        with pytest.raises(IndexError, match=message):
            logprobs_and_entropy(own, wrong, **group)
        with pytest.raises(IndexError, match=message):
            dual_mode_loss(own, wrong, **tokens, **group)
    check_statistics(shard, logits, targets, "after the errors")
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.autograd.grad(logprobs_and_entropy(own, targets, **group).logprobs.sum(), own, create_graph=True)
    with pytest.raises(ValueError, match="process_group"):
        dual_mode_loss(own * 1.0, targets, **tokens, **group, inplace_gradient=True)
    for wrong in ("world", 2, logits):
        with pytest.raises(TypeError, match="ProcessGroup"):
            logprobs_and_entropy(own, targets, process_group=wrong)
    device, rank = torch.device("cpu"), dist.get_rank(shard.group)
    if len(shard.sizes) > 1:
        with pytest.raises(ValueError, match=re.escape("[0, ")):
            vocab_shard(min(rank, 1), device, shard.group)
    expected = (shard.start, shard.sizes[rank], total, max(shard.sizes))
    assert vocab_shard(shard.sizes[rank], device, shard.group)[1:] == expected


def check_shapes(shard):
    for shape in ((), (0,), (2, 0), (2, 1, 3)):
        logits, targets, _ = random_case(shard.sizes, torch.float32, seed=40, shape=shape)
        check_statistics(shard, logits, targets, f"shape {shape}")
    logits, targets, _ = random_case(shard.sizes, torch.float32, seed=41)
    with torch.no_grad():
        out = logprobs_and_entropy(logits[..., shard.columns], targets, process_group=shard.group)
    assert not out.logprobs.requires_grad


def check_compiled(shard):
    """torch.compile calls the collectives rather than tracing them, which would not end."""
    logits, targets, _ = random_case(shard.sizes, torch.float32, seed=50)
    own = shard.leaf(logits)

    def total(x):
        return sum(out.sum() for out in logprobs_and_entropy(x * 2.0, targets, process_group=shard.group))

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The .grad attribute")  # dynamo's own look at what crosses a graph break
        expected, actual = total(own), torch.compile(total, backend="eager")(own)
    torch.testing.assert_close(actual, expected)
    gradients = [torch.autograd.grad(loss, own)[0] for loss in (actual, expected)]
    assert torch.equal(*gradients)


def main(rank, processes, file):
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=int(rank), world_size=int(processes))
    torch.set_num_threads(1)
    world = int(processes)
    for sizes in SIZES[world]:
        shard = Shard(sizes, dist.group.WORLD)
        for check in (check_options, check_rows_that_do_not_count, check_infinite, check_losses):
            check(shard)
    for check in (check_errors, check_shapes):
        check(shard)
    if world == 2:
        check_compiled(shard)
    pairs = [dist.new_group([k, k + world // 2]) for k in range(world // 2)]  # neighbours are in other groups
    check_options(Shard((5, 32), pairs[int(rank) % (world // 2)]))
    alone = [dist.new_group([k]) for k in range(world)]
    shard = Shard(SIZES[1][0], alone[int(rank)])
    for check in (check_options, check_infinite, check_losses, check_errors):
        check(shard)
    dist.barrier()
    dist.destroy_process_group()
    print(SAYS.format(rank=rank, processes=processes))


if __name__ == "__main__":
    main(*sys.argv[1:])
