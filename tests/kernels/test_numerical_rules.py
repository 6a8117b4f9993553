"""The numerical rules of the kernels, one by one, on every backend, for the statistics and for the loss."""

import pytest
import torch
import truth

from policy_split import dual_mode_loss, logprobs_and_entropy

INF = float("inf")


def statistics_and_gradients(logits, targets, **options):
    """logprobs, entropy, d logprobs / d logits, d entropy / d logits, each row by itself."""
    leaf = logits.detach().requires_grad_()
    logprobs, entropy = logprobs_and_entropy(leaf, targets, **options)
    (to_logprobs,) = torch.autograd.grad(logprobs.sum(), leaf, retain_graph=True)
    (to_entropy,) = torch.autograd.grad(entropy.sum(), leaf)
    return logprobs.detach(), entropy.detach(), to_logprobs, to_entropy


def loss_and_gradient(logits, targets, **options):
    n = targets.numel()
    settings = {
        "advantages": torch.linspace(-1, 1.5, n, device=logits.device),
        "mode": torch.arange(n, device=logits.device) % 2,
        "weights": torch.full((n,), 1.0, device=logits.device),
        "entropy_coef": (0.1, 0.3),
    }
    leaf = logits.detach().requires_grad_()
    out = dual_mode_loss(leaf, targets, **{**settings, **options})
    (gradient,) = torch.autograd.grad(out.loss, leaf)
    return out, gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("offset", [1e4, -1e4, 3e5])
def test_a_common_offset_changes_nothing(device, dtype, offset):
    """Multiples of 1/32 stay exact under these offsets in float32: results must agree to the last bits."""
    torch.manual_seed(0)
    slack = truth.offset_slack(offset, dtype)
    logits = (torch.randn(4, 2053, device=device) * 4).mul(32).round().div(32).to(dtype)
    targets = torch.randint(2053, (4,), device=device)
    for a, b in zip(
        statistics_and_gradients(logits, targets), statistics_and_gradients(logits + offset, targets), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-6 + slack, atol=1e-7 + slack)
    (a, grad_a), (b, grad_b) = loss_and_gradient(logits, targets), loss_and_gradient(logits + offset, targets)
    torch.testing.assert_close(a.loss, b.loss, rtol=1e-6 + slack, atol=1e-6)
    torch.testing.assert_close(grad_a, grad_b, rtol=1e-6 + slack, atol=1e-7 + slack)


@pytest.mark.parametrize("dtype", truth.DTYPES, ids=str)
@pytest.mark.parametrize("where", ["scattered", "leading", "all_but_one", "trailing"])
def test_minus_inf_logits_contribute_nothing(device, dtype, where):
    torch.manual_seed(0)
    vocabulary = 5000  # three tiles of the CPU, two of the GPU: a whole leading tile can be masked
    logits = torch.randn(3, vocabulary).mul(3).to(dtype).to(device)
    masked = {
        "scattered": torch.rand(3, vocabulary) > 0.5,
        "leading": torch.arange(vocabulary).expand(3, -1) < 4500,
        "all_but_one": torch.arange(vocabulary).expand(3, -1) != 4999,
        "trailing": torch.arange(vocabulary).expand(3, -1) >= 100,
    }[where].to(device)
    targets = (~masked).int().argmax(-1).long()
    logits = logits.masked_fill(masked, -INF)
    logprobs, entropy, to_logprobs, to_entropy = statistics_and_gradients(logits, targets)
    exact = logits.double().requires_grad_()
    true_logprobs, true_entropy = truth.statistics(exact, targets)
    torch.testing.assert_close(logprobs.double(), true_logprobs, rtol=1e-6, atol=3e-6)
    torch.testing.assert_close(entropy.double(), true_entropy, rtol=1e-6, atol=3e-6)
    assert (to_logprobs[masked] == 0).all()
    assert (to_entropy[masked] == 0).all()
    kept = ~masked
    expected = torch.autograd.grad(true_logprobs.sum(), exact)[0]
    truth.assert_gradient_close(to_logprobs * kept, expected * kept, dtype, terms=torch.ones(3))
    out, gradient = loss_and_gradient(logits, targets)
    assert out.loss.isfinite()
    assert (gradient[masked] == 0).all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("vocabulary", [9, 5000])
def test_target_at_minus_inf(device, vocabulary):
    torch.manual_seed(0)
    logits = torch.randn(2, vocabulary, device=device)
    targets = torch.tensor([0, vocabulary - 1], device=device)
    logits[torch.arange(2), targets] = -INF
    logprobs, entropy, to_logprobs, to_entropy = statistics_and_gradients(logits, targets)
    assert (logprobs == -INF).all()
    assert entropy.isfinite().all()
    assert to_entropy.isfinite().all()
    p = torch.softmax(logits.double(), -1)
    torch.testing.assert_close(
        to_logprobs.double(), torch.nn.functional.one_hot(targets, vocabulary) - p, rtol=1e-5, atol=1e-7
    )
    _, gradient = loss_and_gradient(logits, targets)  # on-policy: the ratio is 1 whatever the log-prob
    assert gradient.isfinite().all()
    _, gradient = loss_and_gradient(logits, targets, old_logprobs=torch.full((2,), -3.0, device=device))
    assert gradient.isfinite().all()


@pytest.mark.parametrize("vocabulary", [9, 5000])
def test_a_row_of_minus_inf_is_nan_as_in_torch(device, vocabulary):
    logits = torch.zeros(3, vocabulary, device=device)
    logits[1] = -INF
    targets = torch.zeros(3, dtype=torch.long, device=device)
    for x in statistics_and_gradients(logits, targets):
        assert x[1].isnan().all()
        assert x[::2].isfinite().all()
    out, gradient = loss_and_gradient(logits, targets)
    assert out.loss.isnan()
    assert gradient[1].isnan().all()
    assert gradient[::2].isfinite().all()


@pytest.mark.parametrize("dtype", truth.DTYPES, ids=str)
@pytest.mark.parametrize("position", [0, 3, 2047, 2048, 4999])
@pytest.mark.parametrize("value", [float("nan"), INF])
def test_nan_and_inf_are_not_hidden(device, dtype, position, value):
    logits = torch.randn(3, 5000, generator=torch.Generator().manual_seed(0)).to(dtype).to(device)
    clean = logits.clone()
    logits[1, position] = value
    targets = torch.tensor([1, 2, 3], device=device)
    expected = statistics_and_gradients(clean, targets)
    for x, y in zip(statistics_and_gradients(logits, targets), expected, strict=True):
        assert x[1].isnan().all()
        assert torch.equal(x[::2], y[::2])
    out, gradient = loss_and_gradient(logits, targets)
    assert out.loss.isnan()
    assert gradient[1].isnan().all()
    out, _ = loss_and_gradient(logits, targets, entropy_coef=(0.0, 0.0))  # the log-prob alone carries it
    assert out.loss.isnan()


def test_a_nan_with_a_payload_stays_nan(device):
    """The bit tricks of an exponential must not turn an unusual NaN into a number."""
    logits = torch.zeros(2, 40, device=device)
    logits.view(torch.int32)[0, 7] = 0x7FC001FF
    logits.view(torch.int32)[1, 39] = -1
    targets = torch.zeros(2, dtype=torch.long, device=device)
    for x in statistics_and_gradients(logits, targets):
        assert x.isnan().all()


@pytest.mark.parametrize("ignored_by", ["mask", "target"])
@pytest.mark.parametrize("inplace", [False, True])
def test_masked_rows_are_not_read(device, ignored_by, inplace):
    torch.manual_seed(0)
    logits = torch.randn(4, 300, device=device)
    logits[1] = float("nan")
    logits[3] = INF
    targets = torch.tensor([5, -100, 7, -100], device=device)
    mask = None
    if ignored_by == "mask":
        targets, mask = torch.tensor([5, 10**9, 7, -5], device=device), torch.tensor([1, 0, 1, 0], device=device)
    for x in statistics_and_gradients(logits, targets, mask=mask):
        assert (x[1::2] == 0).all()
        assert x[::2].isfinite().all()
    nan = torch.full((4,), float("nan"), device=device)
    advantages = torch.where(torch.tensor([True, False, True, False], device=device), 1.0, nan)
    leaf = logits.clone().requires_grad_()
    out = dual_mode_loss(
        leaf * 1.0, targets, mask=mask, advantages=advantages, old_logprobs=advantages - 5, ref_logprobs=advantages,
        mode=torch.tensor([0, 1, 1, 0], device=device), kl_coef=(0.1, 0.1), inplace_gradient=inplace,
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(out.loss, leaf)
    assert out.loss.isfinite()
    assert (gradient[1::2] == 0).all()
    assert (gradient[::2] != 0).any(-1).all()
    for x in (out.logprobs, out.entropy, out.kl, out.clipped):
        assert (x[1::2] == 0).all()


def test_inputs_are_not_changed(device):
    torch.manual_seed(0)
    logits = torch.randn(3, 100, device=device)
    before = logits.clone()
    targets = torch.tensor([1, 2, 3], device=device)
    statistics_and_gradients(logits, targets, temperature=0.5)
    loss_and_gradient(logits, targets, temperature=torch.tensor([0.5, 1.0, 2.0], device=device))
    assert torch.equal(logits, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_probability_minus_one_is_formed_before_rounding(device, dtype):
    """p = 1 - 2e-4 rounds to 1 in bfloat16 and float16: the target's gradient must still be about 2e-4."""
    logits = torch.full((1, 3), -9.0, dtype=dtype, device=device)
    logits[0, 1] = 0.0
    targets = torch.tensor([1], device=device)
    _, _, to_logprobs, _ = statistics_and_gradients(logits, targets)
    expected = 1 - torch.softmax(logits.double(), -1)[0, 1]
    assert abs(to_logprobs[0, 1].double() / expected - 1) < 2**-6


@pytest.mark.parametrize("vocabulary", [40, 5000])
def test_extreme_finite_logits(device, vocabulary):
    """finfo.min is a usual mask value, and a whole row may hold it."""
    least = torch.finfo(torch.float32).min
    logits = torch.randn(3, vocabulary, generator=torch.Generator().manual_seed(0)).to(device)
    logits[0, 1::2] = least
    logits[1] = least
    logits[2, 0] = torch.finfo(torch.float32).max
    targets = torch.tensor([0, 3, 0], device=device)
    logprobs, entropy, to_logprobs, to_entropy = statistics_and_gradients(logits, targets)
    true_logprobs, true_entropy = truth.statistics(logits.double(), targets)
    torch.testing.assert_close(logprobs.double(), true_logprobs, rtol=1e-6, atol=3e-6)
    torch.testing.assert_close(entropy.double(), true_entropy, rtol=1e-6, atol=3e-6)
    assert to_logprobs.isfinite().all()
    assert to_entropy.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_does_not_depend_on_its_batch(device, dtype):
    """Bitwise: alone, in a batch, in another order, again."""
    torch.manual_seed(0)
    logits = (torch.randn(7, 2053) * 3).to(dtype).to(device)
    targets = torch.randint(2053, (7,), device=device)
    whole = statistics_and_gradients(logits, targets)
    order = torch.randperm(7, device=device)
    for x, y, z in zip(
        whole,
        statistics_and_gradients(logits, targets),
        statistics_and_gradients(logits[order], targets[order]),
        strict=True,
    ):
        assert torch.equal(x, y)
        assert torch.equal(x[order], z)
    for n in (0, 6):
        alone = statistics_and_gradients(logits[n : n + 1], targets[n : n + 1])
        for x, y in zip(whole, alone, strict=True):
            assert torch.equal(x[n : n + 1], y)


def test_upstream_gradients_with_stride_zero(device):
    logits = torch.randn(5, 50, device=device, requires_grad=True)
    targets = torch.randint(50, (5,), device=device)
    logprobs, _ = logprobs_and_entropy(logits, targets)
    (actual,) = torch.autograd.grad(logprobs, logits, torch.tensor(2.0, device=device).expand(5), retain_graph=True)
    (expected,) = torch.autograd.grad(logprobs, logits, torch.full((5,), 2.0, device=device))
    assert torch.equal(actual, expected)
