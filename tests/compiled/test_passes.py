"""What each pass of Triton's compiler receives computes the same, for three generations of GPUs (ttsem.validate).

The table of docs/compiled.md is what these print, with -s and without -n: PYTHONPATH=tests/support
.venv-compiled/bin/python -m pytest -p compiled_session -m "" -s tests/compiled/test_passes.py
"""

import compiled_calls as calls
import pytest
import torch
import warp_order
from ttsem import races, validate

CAPABILITIES = (80, 90, 100)
LONG, SHORT = 2100, 700  # the shortest rows of a whole tile and a tail, of one matrix and of two
# One row, and the shorter the better: most passes change nothing, but of the others each is executed.
CALLS = {
    "statistics": (lambda: calls.check_statistics(*rows(LONG)), ("logprobs_entropy", "logprobs_entropy_gradient")),
    "loss": (lambda: loss(*rows(LONG)), ("dual_mode_loss", "scale_rows")),
    "divergence": (lambda: calls.check_divergence(*pair()), ("divergence", "divergence_gradient")),
    "mixture": (lambda: calls.check_jensen_shannon(*pair()), ("jensen_shannon", "jensen_shannon_gradient")),
}
AGREES = ("match", "approx")


def rows(vocabulary, seed=0):
    return calls.random_rows(1, vocabulary, torch.float32, seed=seed)


def pair():
    return [rows(SHORT, seed)[0] for seed in (3, 4)]


def loss(logits, targets):
    calls.check_loss(logits, targets, calls.loss_tokens(logits, targets), upstream=0.5)


def changed(stages):
    """The stages whose module is not that of the stage before."""
    before = [None] + [text for _, text in stages[:-1]]
    return [stage for stage, earlier in zip(stages, before, strict=True) if stage[1] != earlier]


def test_every_kernel_is_here():
    from policy_split_kernels.gpu import divergence, logits

    found = {name for module in (logits, divergence) for name in vars(module) if name.endswith("_kernel")}
    assert found == {f"{name}_kernel" for _, names in CALLS.values() for name in names}


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", CALLS)
def test_no_pass_changes_what_a_kernel_computes(name, capability):
    """The stages end where the conversion to LLVM begins; one that ttsem cannot parse is named, and is no mismatch."""
    call, kernels = CALLS[name]
    with warp_order.recorded() as records:
        call()
    assert [record.fn_name for record in records] == [f"{kernel}_kernel" for kernel in kernels]
    for record in records:
        stages = warp_order.stages(record, capability)
        assert len(stages) >= 50
        report = validate.validate_stages(record, changed(stages))
        (shared,) = races.detect(warp_order.last_module(record, capability))
        verdicts = [x.verdict for x in report.passes]
        counts = [verdicts.count(verdict) for verdict in AGREES]
        unread = [f"{x.pass_name[:40]}: {x.message[:120]}" for x in report.passes if x.verdict not in AGREES]
        found = f"{shared.status}, {shared.accesses} accesses, {len(shared.races)} races"
        cells = [record.fn_name, f"sm_{capability}", len(stages), len(verdicts), *counts, "; ".join(unread), found]
        print(f"\n| {' | '.join(map(str, cells))} |")
        assert report.first_bad_pass is None
        assert sum(counts) >= 10
        assert len(unread) <= 1
        assert not any(x.extra_reads for x in report.passes)
        assert (shared.status, shared.races) == ("ok", [])
