"""Each kernel's GPU code on three generations: no element of global memory is left to the order of a program's warps.

The hazards that the kernels' comments name are in it: the target's gradient is written after the tile that holds it,
and in place the row is overwritten while it is read. The others say that they have none.
"""

import compiled_calls as calls
import pytest
import torch
import warp_order
from planted import call_in_place

import policy_split_kernels

# Several warps, whole tiles and a tail: of one matrix and of two; by single elements, and in vectors.
ROWS = {torch.float32: (2053, 1029), torch.bfloat16: (4104, 2056)}


def records_of(kernel, dtype, vocabulary):
    """A launch of this kernel, in place where it can be."""
    logits, targets = calls.random_rows(2, vocabulary, dtype)
    with warp_order.recorded() as records:
        if kernel.startswith("logprobs"):
            call_in_place(policy_split_kernels, logits[None], targets)
        elif kernel.startswith("divergence"):
            calls.check_divergence(logits, logits.flip(0))
        elif kernel.startswith("jensen_shannon"):
            calls.check_jensen_shannon(logits, logits.flip(0))
        else:
            leaf = logits.requires_grad_()
            inplace = kernel.startswith("dual") or dtype == torch.float32  # bfloat16 in place is not scaled
            rows, options = (leaf * 1.0, {"inplace_of": leaf}) if inplace else (logits, {})
            calls.check_loss(rows, targets, calls.loss_tokens(logits, targets), upstream=0.5, **options)
    return next(record for record in records if record.fn_name == kernel)


KERNELS = (
    "logprobs_entropy_kernel", "logprobs_entropy_gradient_kernel", "dual_mode_loss_kernel", "scale_rows_kernel",
    "divergence_kernel", "divergence_gradient_kernel", "jensen_shannon_kernel", "jensen_shannon_gradient_kernel",
)  # fmt: skip


def test_every_kernel_is_here():
    from policy_split_kernels.gpu import divergence, logits

    found = {name for module in (logits, divergence) for name in vars(module) if name.endswith("_kernel")}
    assert found == set(KERNELS)


@pytest.mark.parametrize("dtype", ROWS, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_no_warp_meets_what_another_has_written(kernel, dtype):
    vocabulary = ROWS[dtype][kernel.startswith(("divergence", "jensen_shannon"))]
    record = records_of(kernel, dtype, vocabulary)
    for capability in (80, 90, 100):
        order = warp_order.order_of(record, warp_order.last_module(record, capability))
        assert order.num_warps >= 4
        assert order.touched >= 2 * vocabulary * dtype.itemsize // 4  # two bfloat16 are read as one
        assert warp_order.lines(order.races) == [], capability
        assert not order.gaps
