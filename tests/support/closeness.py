"""How far a kernel may be from float64, by value and by gradient."""

import os

import torch

FLOOR = {torch.float64: 1e-13, torch.float32: 1e-6}  # of the statistics dtype, relative to the size of what cancels


def assert_values(name, actual, eager, exact, size):
    """NaN and infinity where they belong; elsewhere the three-way rule with the floor relative to `size`."""
    actual, eager = actual.reshape(-1), eager.double()
    assert torch.equal(actual.isnan(), exact.isnan()), name
    infinite = exact.isinf()
    assert torch.equal(actual[infinite].double(), exact[infinite]), name
    rest = exact.isfinite()
    error, theirs = ((x.double() - exact).abs()[rest] for x in (actual, eager))
    allowed = 2 * theirs.nan_to_num() + FLOOR[actual.dtype] * size.detach()[rest]
    assert (error <= allowed).all(), (
        f"{name}: error {error.max():.1e}, {(error / allowed).max():.1f} of what is allowed"
    )


def assert_gradients(actual, eager, exact, size, unmoved, backend):
    """Row by row in the maximum norm; on top of the floor the result may be rounded once.

    `size (N,)`: how large the terms of a row are; NaN where its distribution is, and the gradient has to show it.
    """
    dtype = actual.dtype
    actual = actual.reshape(exact.shape).double()
    hidden = size.isnan()
    assert torch.equal(actual.isnan().any(-1), hidden)
    assert (actual[unmoved & ~hidden[:, None]] == 0).all()
    cut = 2 if backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1" else 1  # it does not round bfloat16
    rounding = torch.finfo(dtype).eps / 2 * exact.abs() * cut + torch.finfo(dtype).tiny * torch.finfo(dtype).eps
    error = ((actual - exact).abs() - rounding).amax(-1)
    theirs = (eager.double() - exact).abs().amax(-1).nan_to_num()
    floor = FLOOR[torch.float64 if dtype == torch.float64 else torch.float32]
    allowed = 2 * theirs + floor * (size.detach() + exact.abs().amax(-1))
    wrong = (error > allowed)[~hidden]
    assert not wrong.any(), f"{int(wrong.sum())} rows, {(error / allowed)[~hidden].max():.1f} times what is allowed"


def statistics_sizes(case, logprobs, entropy):
    """What the floor of either is relative to: float32 rounds the log-prob, and a capped logit before it."""
    return logprobs.detach().abs() + case.rounding, 1 + entropy.detach().abs()
