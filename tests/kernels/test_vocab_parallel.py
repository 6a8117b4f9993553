"""A vocabulary that is split: a target in another part, how the parts add up, and real groups of processes."""

import itertools

import cases
import formulas
import pytest
import torch
from closeness import assert_gradients, assert_values, statistics_sizes
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from processes import run_in_processes

from policy_split import DualModeLoss, dual_mode_loss, logprobs_and_entropy
from policy_split_kernels import ops
from policy_split_kernels.contract import ELSEWHERE, IGNORE_INDEX, RowStatistics, statistics_dtype
from policy_split_kernels.rows import as_rows, inverse_temperature_vector, keep_rows
from policy_split_kernels.vocab_parallel import VocabShard, local_targets, shard_max, shard_sums, statistics_of_sums

INF, NAN = float("inf"), float("nan")
QUARTERS = (0.0, 1.0986122886681098)  # their softmax is (1/4, 3/4)


def rows_of(device, *rows, dtype=torch.float32):
    return torch.tensor([rows], device=device, dtype=dtype)  # (1, N, V)


def vector(device, *values, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype, device=device)


def distribution(x, *targets, mask=None):
    """The arguments of the operations on x (1, N, V) at temperature 1."""
    scale = torch.ones(1, dtype=statistics_dtype(x.dtype), device=x.device)
    return x, vector(x.device, *targets, dtype=torch.int64), scale, mask, None, None


class TestTargetElsewhere:
    def test_statistics_without_a_logprob(self, device):
        logprobs, *rest = ops.logprobs_entropy(*distribution(rows_of(device, QUARTERS, QUARTERS), ELSEWHERE, 0))
        torch.testing.assert_close(logprobs, vector(device, 0.0, -1.3862944))
        for values, expected in zip(rest, (0.5623351, 1.0986123, 0.2876821), strict=True):
            torch.testing.assert_close(values, vector(device, expected, expected))

    @pytest.mark.parametrize("inplace", [False, True])
    def test_gradient_without_a_target(self, device, inplace):
        x, *arguments = distribution(rows_of(device, QUARTERS, QUARTERS), ELSEWHERE, 0)
        _, entropy, row_max, log_sum = ops.logprobs_entropy(x, *arguments)
        arguments += [row_max, log_sum, entropy, vector(device, 2.0, 2.0), vector(device, 0.0, 0.0), None]
        if inplace:
            ops.logprobs_entropy_gradient_(x, *arguments)
            gradient = x
        else:
            gradient = ops.logprobs_entropy_gradient(x, *arguments)
        torch.testing.assert_close(gradient, rows_of(device, (-0.5, -1.5), (1.5, -1.5)))

    def test_loss_takes_its_logprob_for_0(self, device):
        zero, one, two = (vector(device, value) for value in (0.0, 1.0, 2.0))
        arguments = (two, None, None, None, one, zero, zero, "clip", 0.2, 0.2, None, 2.0, [1.0, 1.05], False, None)
        x = rows_of(device, QUARTERS)
        losses, logprobs, *_, gradient = ops.dual_mode_loss_with_gradient(*distribution(x, ELSEWHERE), *arguments)
        assert losses == -2
        assert logprobs == 0
        torch.testing.assert_close(gradient, rows_of(device, (0.5, 1.5)))

    def test_row_that_does_not_count(self, device):
        x = rows_of(device, (NAN, NAN))
        nothing = torch.zeros(1, dtype=torch.bool, device=device)
        assert all(values == 0 for values in ops.logprobs_entropy(*distribution(x, ELSEWHERE, mask=nothing)))

    @pytest.mark.parametrize("bad", [-1, -2, 2, -(2**63) + 1, 2**62])
    def test_any_other_target_is_bad(self, device, backend, bad):
        arguments = distribution(rows_of(device, QUARTERS, QUARTERS), ELSEWHERE, bad)
        if backend == "triton":
            statistics = ops.logprobs_entropy(*arguments)
            assert all(values.isnan().tolist() == [False, True] for values in statistics)
        else:
            with pytest.raises(IndexError, match=rf"targets\[1\] = {bad} "):
                ops.logprobs_entropy(*arguments)

    @pytest.mark.parametrize("width", [3, 2051])  # less and more than a tile
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
    def test_a_maximum_of_minus_infinity_hides_no_nan(self, device, dtype, width):
        """`shard_sums` takes such a shard for one without a finite logit."""
        rows = [(-INF, -INF, -INF), (NAN, -INF, -INF), (-INF, NAN, 1.0), (-INF, -INF, NAN)]
        x = torch.nn.functional.pad(rows_of(device, *rows, dtype=dtype), (0, width - 3), value=-INF)
        _, _, row_max, log_sum = ops.logprobs_entropy(*distribution(x, *[ELSEWHERE] * 4))
        assert (row_max == -INF).tolist() == [True, False, False, False]
        assert log_sum[1:].isnan().all()


def test_local_targets():
    shard = VocabShard(None, start=3, size=2, total=7, largest=3)
    targets = torch.tensor([0, 2, 3, 4, 5, 6, IGNORE_INDEX, 99])
    valid = torch.tensor([True] * 6 + [False] * 2)
    expected = [ELSEWHERE, ELSEWHERE, 0, 1, ELSEWHERE, ELSEWHERE, IGNORE_INDEX, IGNORE_INDEX]
    assert local_targets(targets, valid, shard).tolist() == expected
    with pytest.raises(IndexError, match=r"targets\[7\] = 99 is outside the vocabulary of 7;"):
        local_targets(targets, valid | (targets == 99), shard)


def in_shards(case, cuts, grads):
    """(logprobs, entropy) and the gradient of all logits: each part by its own kernels, the all-reduces done here."""
    logits, vocabulary = case.logits, case.logits.shape[-1]
    cuts = [0, *sorted({cut % vocabulary for cut in cuts} - {0}), vocabulary]
    keep = torch.ones_like(logits, dtype=torch.bool) if case.keep_mask is None else case.keep_mask.expand(logits.shape)
    scale, shards = inverse_temperature_vector(case.temperature, logits), []
    for start, end in itertools.pairwise(cuts):
        targets = local_targets(
            case.targets.reshape(-1), case.valid, VocabShard(None, start, end - start, vocabulary, 0)
        )
        part = logits[..., start:end]
        kept = None if case.keep_mask is None else keep_rows(keep[..., start:end], part)
        shards.append((as_rows(part), targets, scale, None, case.softcap, kept))
    own = [RowStatistics(*ops.logprobs_entropy(*shard)) for shard in shards]
    row_max = torch.stack([shard_max(x) for x in own]).amax(0)
    sums = sum(shard_sums(x, targets, scale, row_max) for x, (_, targets, *_) in zip(own, shards, strict=True))
    logprobs, entropy, row_max, log_sum = statistics_of_sums(row_max, sums, case.valid, case.statistics_dtype)
    gradients = [ops.logprobs_entropy_gradient(*shard, row_max, log_sum, entropy, *grads, None) for shard in shards]
    return (logprobs, entropy), torch.cat([g.reshape(-1, g.shape[-1]) for g in gradients], -1)


OF_A_SHARD = {
    "vocabulary": 37, "layout": "dense", "dtype": torch.float32, "mask": "bool", "ignored": True, "pattern": "leading",
    "nan": "none", "offset": 1e4, "scale": 4.0, "temperature": "row", "softcap": None, "keep": "whole", "seed": 3,
}  # fmt: skip


@settings(
    max_examples=max(1, settings.default.max_examples // 3), deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(drawn=cases.drawn_cases((1, 2, 7, 1023, 2053)), cuts=st.lists(st.integers(0, 2052), max_size=4))
@example(drawn=OF_A_SHARD, cuts=[1, 7, 36])
@example(drawn=OF_A_SHARD | {"pattern": "target", "dtype": torch.bfloat16, "softcap": 5.0, "offset": 0.0}, cuts=[20])
@example(drawn=OF_A_SHARD | {"pattern": "none", "scale": 60.0, "nan": "counted", "mask": None}, cuts=[1, 2, 3])
def test_parts_add_up_in_any_case(backend, device, drawn, cuts):
    """Statistics and gradient of the parts, put together, by the same rule as those of the whole in test_properties."""
    case = cases.build(drawn, device)
    grads = [case.normal().reshape(-1) for _ in range(2)]
    statistics, gradient = in_shards(case, cuts, grads)
    results = []
    for own, dtype in ((torch.float64, torch.float64), (case.logits.dtype, case.statistics_dtype)):
        x = case.rows.detach().to(own, copy=True).requires_grad_()
        rows = formulas.statistics(x, case.targets.reshape(-1), valid=case.valid, dtype=dtype, **case.flat_options())
        results.append((rows, torch.autograd.grad(rows, x, [g.to(dtype) for g in grads])[0]))
    (exact, true_gradient), (eager, eager_gradient) = results
    sizes = statistics_sizes(case, *exact)
    for name, *values in zip(("logprobs", "entropy"), statistics, eager, exact, sizes, strict=True):
        assert_values(name, *values)
    size = (grads[0].abs() * case.rounding + grads[1].abs() * sizes[1]) * 2
    assert_gradients(gradient, eager_gradient, true_gradient, size, case.unmoved(), backend)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes(tmp_path, processes):
    run_in_processes("vocab_parallel_processes.py", processes, tmp_path)


def test_what_is_no_group(device):
    logits, targets = torch.zeros(3, 5, device=device), torch.zeros(3, dtype=torch.int64, device=device)
    with pytest.raises(TypeError, match=r"process_group must be a torch\.distributed\.ProcessGroup"):
        logprobs_and_entropy(logits, targets, process_group="world")
    tokens = {"advantages": torch.zeros(3, device=device), "mode": targets}
    for module in (dual_mode_loss, DualModeLoss(process_group=-100)):  # what new_group gives to those outside
        wrong = {"process_group": -100} if module is dual_mode_loss else {}
        with pytest.raises(TypeError, match="that this process belongs to, got int"):
            module(logits, targets, **tokens, **wrong)
    with pytest.raises(ValueError, match=r"inplace_gradient=True .* process_group"):
        dual_mode_loss(logits * 1, targets, **tokens, inplace_gradient=True, process_group="world")
