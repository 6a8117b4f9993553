"""What each pass of Triton's compiler receives computes the same, for three generations of GPUs (ttsem.validate)."""

import compiled_calls as calls
import pytest
import torch
import warp_order
from ttsem import races, validate

CAPABILITIES = (80, 90, 100)
# float32 rows with a whole tile and a tail, as short as they can be: a pass takes as long as the rows are.
CALLS = {
    "statistics": (lambda: calls.check_statistics(*calls.random_rows(2, 2100, torch.float32)), 2),
    "loss": (lambda: _loss(), 2),
    "divergence": (lambda: _divergence(), 2),
}


def _loss():
    logits, targets = calls.random_rows(2, 2100, torch.float32)
    calls.check_loss(logits, targets, calls.loss_tokens(logits, targets), upstream=0.5)


def _divergence():
    pair = (calls.random_rows(2, 700, torch.float32, seed=seed)[0] for seed in (3, 4))
    calls.check_divergence(*pair)


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", CALLS)
def test_no_pass_changes_what_a_kernel_computes(name, capability):
    """The stages end where the conversion to LLVM begins; one that ttsem cannot parse is named, and is no mismatch."""
    call, kernels = CALLS[name]
    with warp_order.recorded() as records:
        call()
    assert len(records) == kernels
    for record in records:
        stages = warp_order.stages(record, capability)
        report = validate.validate_stages(record, stages)
        verdicts = [x.verdict for x in report.passes]
        print(record.fn_name, capability, {verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))})
        for x in report.passes:
            if x.verdict not in ("match", "approx"):
                print(f"  {x.verdict}: {x.pass_name[:60]}: {x.message[:120]}")
        assert report.first_bad_pass is None
        assert sum(x in ("match", "approx") for x in verdicts) >= 50
        assert sum(x == "error" for x in verdicts) <= 1
        assert not any(x.extra_reads for x in report.passes)
        (shared,) = races.detect(warp_order.last_module(record, capability))
        print(f"  shared memory: {shared.status}, {shared.accesses} explicit accesses, {len(shared.races)} races")
        assert (shared.status, shared.races) == ("ok", [])
