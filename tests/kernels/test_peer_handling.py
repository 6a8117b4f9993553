"""The mistakes that users of other packages reported, each by a minimal reproduction: all but the numbers.

Wrong numbers, and the themes that belong to the LM head, are in `test_peer_mistakes`.
"""

import pytest
import torch
from peer_inputs import assert_true, random_batch, tokens, values_and_gradients
from torch.utils._python_dispatch import TorchDispatchMode

from policy_split import dual_mode_loss, logprobs_and_entropy, mode_divergence
from policy_split_kernels import autograd, backends

NO_MORE = ([1.0, 1.05], False, None)  # of the settings of a loss: SAPO, corrected KL, its cap


@pytest.mark.parametrize("backend", ["torch", "native"], indirect=True)
def test_more_rows_than_a_grid_has_in_y(backend):
    """TRL #7266, Liger PR #1294: CUDA's second and third dimensions end at 65,535. (2^31: test_repeatability.)"""
    logits, targets = random_batch(70_000, 5, "cpu")
    assert_true(logits, targets)
    out = dual_mode_loss(logits, targets, **tokens(targets))
    assert torch.equal(out.entropy[-3:], dual_mode_loss(logits[-3:], targets[-3:], **tokens(targets[-3:])).entropy)


@pytest.mark.parametrize("backend", ["triton"], indirect=True)
def test_grids_have_one_dimension(device, monkeypatch):
    """The same on a GPU, whose kernels take 70,000 rows in x: fla #1080 counted them in y."""
    grids = []

    class Recorder:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            grids.append(grid)
            return lambda *_, **__: None

    for family in ("logits", "divergence"):
        cells = backends.cells(torch.device(device), family)
        for name, value in vars(cells).items():
            if name.endswith("_kernel"):
                monkeypatch.setattr(cells, name, Recorder(value))
    logits = torch.zeros(70_000, 1, device=device, requires_grad=True)
    targets = torch.zeros(70_000, dtype=torch.long, device=device)
    torch.autograd.grad(logprobs_and_entropy(logits, targets), logits, [logits.detach()[:, 0]] * 2)
    torch.autograd.grad(dual_mode_loss(logits, targets, **tokens(targets)).loss, logits)
    torch.autograd.grad(mode_divergence(logits, logits.detach()), logits, [logits.detach()[:, 0]] * 4)
    assert len(grids) >= 5
    assert all(len(grid) == 1 for grid in grids), grids
    assert any(grid == (70_000,) for grid in grids)


def test_logits_are_not_overwritten_unless_asked_for(device):
    """Liger #272 #1251, quack #209, unsloth #5002: in-place gradients, and a second backward that is silently wrong."""
    logits, targets = random_batch(4, 60, device)
    leaf = logits.clone().requires_grad_()
    computed = leaf * 1
    out = dual_mode_loss(computed, targets, **tokens(targets))
    (first,) = torch.autograd.grad(out.loss * 2, leaf, retain_graph=True)
    assert torch.equal(computed, logits)
    (second,) = torch.autograd.grad(out.loss, leaf, retain_graph=True)
    torch.testing.assert_close(second * 2, first, rtol=1e-6, atol=1e-9)
    out.loss.backward()
    out_again = dual_mode_loss(leaf * 1, targets, **tokens(targets))
    out_again.loss.backward()  # accumulates
    torch.testing.assert_close(leaf.grad, first, rtol=1e-6, atol=1e-9)
    spent = dual_mode_loss(leaf * 1, targets, **tokens(targets), inplace_gradient=True)
    torch.autograd.grad(spent.loss, leaf, retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward"):
        torch.autograd.grad(spent.loss, leaf)


def test_every_token_has_an_upstream_gradient_of_its_own(device):
    """Liger #1298 scaled all of them by the first one; unsloth ignored them."""
    logits, targets = random_batch(4, 60, device)
    upstream = torch.tensor([0.0, 2.0, -1.0, 0.5], device=device)
    leaf = logits.requires_grad_()
    ones = torch.ones(4, device=device)
    arguments = (ones.reciprocal(), None, None, None, ones, None, None, None, ones, ones * 0.1, ones * 0)

    def outputs():
        losses = autograd.loss_rows(leaf[None], targets, *arguments, "clip", 0.2, 0.2, None, 2.0, *NO_MORE)[0]
        return (*logprobs_and_entropy(leaf, targets), losses)

    for summed, out in zip(outputs(), outputs(), strict=True):
        (unit,) = torch.autograd.grad(summed.sum(), leaf, retain_graph=True)
        for _ in range(2):  # the loss forms its gradient in forward and can give it away once
            (gradient,) = torch.autograd.grad(out, leaf, upstream, retain_graph=True)
            torch.testing.assert_close(gradient, unit * upstream[:, None], rtol=1e-6, atol=1e-8)


def test_strides_of_masks_labels_and_upstream_gradients(device):
    """Liger #1461, flash-attn: what is not contiguous, not aligned to 16 bytes, or of stride 0."""
    logits, targets = random_batch(6, 41, device)
    logits = logits.view(2, 3, 41)
    mask = torch.tensor([True, False, True], device=device)
    expected = values_and_gradients(logits, targets.view(2, 3), mask=mask.repeat(2, 1).contiguous())
    shifted = torch.full((7,), -7, device=device).index_copy(0, torch.arange(1, 7, device=device), targets)[1:]
    padded = torch.zeros(2, 5, dtype=torch.long, device=device)
    padded[:, 1:4] = targets.view(2, 3)
    for labels in (
        shifted.view(2, 3),
        padded[:, 1:4],
        targets.int().view(2, 3),
        targets.view(2, 3).t().contiguous().t(),
    ):
        assert labels.data_ptr() % 16 or labels.dtype == torch.int32 or not labels.is_contiguous()
        actual = values_and_gradients(logits, labels, mask=mask.expand(2, 3))
        assert all(torch.equal(x, y) for x, y in zip(actual, expected, strict=True))
    odd = torch.zeros(2, 4, 45, device=device)[:, 1:, 3:44].copy_(logits)  # rows that begin at odd multiples of 4 bytes
    assert all(
        torch.allclose(x, y, rtol=1e-6, atol=1e-6)
        for x, y in zip(values_and_gradients(odd, targets.view(2, 3), mask=mask.expand(2, 3)), expected, strict=True)
    )
    leaf = logits.detach().requires_grad_()
    entropy = logprobs_and_entropy(leaf, targets.view(2, 3)).entropy
    (expanded,) = torch.autograd.grad(entropy, leaf, torch.tensor(0.3, device=device).expand(2, 3), retain_graph=True)
    (whole,) = torch.autograd.grad(entropy, leaf, torch.full((2, 3), 0.3, device=device))
    assert torch.equal(expanded, whole)


class Synchronisations(TorchDispatchMode):
    """Counts what waits for a device: a number read by the host, or a shape that depends on values."""

    names = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.__name__.split(".")[0]
        self.seen += [name] if name in self.names else []
        return function(*arguments, **(options or {}))


def test_nothing_is_read_by_the_host():
    """Liger: `.item()`, `grad_output != 1.0`. Tensors on the meta device have no numbers, and reading one raises."""
    logits = torch.empty(2, 3, 40, device="meta", dtype=torch.bfloat16, requires_grad=True)
    targets = torch.empty(2, 3, device="meta", dtype=torch.long)
    vector = torch.empty(2, 3, device="meta")
    options = {"mask": vector, "temperature": vector, "keep_mask": torch.empty(40, device="meta", dtype=torch.bool)}
    with Synchronisations() as mode:
        torch.autograd.grad(logprobs_and_entropy(logits, targets, softcap=9.0, **options), logits, [vector] * 2)
        every = {f"{name}_logprobs": vector for name in ("old", "ref", "sampler")}
        for level in ("token", "sequence"):
            out = dual_mode_loss(
                logits, targets, advantages=vector, mode=targets, **every, **options, ratio_level=level
            )
            torch.autograd.grad(out.loss * 3, logits, retain_graph=True)
            torch.autograd.grad(out.loss, logits)
        del options["keep_mask"]
        torch.autograd.grad(mode_divergence(logits, logits, **options), logits, [vector] * 4)
        assert not mode.seen
        with pytest.raises(RuntimeError):
            vector.sum().item()
        assert mode.seen == ["_local_scalar_dense"]


@pytest.mark.parametrize("backend", ["triton"], indirect=True)
def test_launching_reads_nothing_by_the_host(device):
    """The same for what runs between the operator and the kernel."""
    logits, targets = random_batch(2, 40, device)
    ones = torch.ones(2, device=device)
    cells = backends.cells(logits.device)
    with Synchronisations() as mode:
        *_, row_max, log_sum = cells.logprobs_entropy(logits[None], targets, ones, ones > 0, 9.0, logits[None] > 0)
        cells.logprobs_entropy_gradient(
            logits[None],
            targets,
            ones,
            None,
            None,
            None,
            row_max,
            log_sum,
            ones,
            ones,
            ones,
            ones,
            logits[None].clone(),
        )
        cells.dual_mode_loss(
            logits[None], targets, ones, None, None, None, ones, ones, ones, None, ones, ones, ones,
            "clip", 0.2, 0.2, None, 2.0, *NO_MORE, logits[None].clone(),
        )  # fmt: skip
        cells.scale_rows_(logits[None], ones)
    assert not mode.seen


@pytest.mark.parametrize("coefficient", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_no_matrix_is_kept_for_the_entropy(device, coefficient, dtype):
    """slime #2130: the graph of the entropy stayed although its coefficient was 0, and memory ran out."""
    logits, targets = random_batch(8, 500, device, dtype)
    leaf = logits.requires_grad_()
    saved = {}

    def pack(x):
        saved[x.data_ptr()] = x.untyped_storage().nbytes()
        return x

    for function in (
        lambda: dual_mode_loss(leaf, targets, **tokens(targets) | {"entropy_coef": (coefficient, coefficient)}).loss,
        lambda: logprobs_and_entropy(leaf, targets),
        lambda: mode_divergence(leaf, leaf),
    ):
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            out = function()
        assert saved.pop(leaf.data_ptr(), leaf.nbytes) == leaf.nbytes
        assert sum(saved.values()) < leaf.nbytes / 8  # vectors of the rows
        del out


def test_many_calls_change_no_input(device):
    """SkyRL #2141: an autotuner that tried its configurations on the caller's own tensors."""
    logits, targets = random_batch(5, 300, device)
    vectors = {name: torch.rand(5, device=device) - 4 for name in ("old_logprobs", "ref_logprobs", "sampler_logprobs")}
    vectors |= {"mask": torch.ones(5, device=device), "weights": torch.rand(5, device=device)}
    inputs = {**tokens(targets, **vectors), "temperature": torch.rand(5, device=device) + 0.5}
    keep = (torch.rand(5, 300, device=device) > 0.1).scatter(1, targets[:, None], True)
    everything = [logits, targets, keep, *(x for x in inputs.values() if isinstance(x, torch.Tensor))]
    before = [x.clone() for x in everything]
    results = []
    for _ in range(5):
        leaf = logits.detach().requires_grad_()
        out = dual_mode_loss(leaf, targets, **inputs, keep_mask=keep)
        results.append([out.loss.detach(), *out[1:], *torch.autograd.grad(out.loss, leaf)])
        results[-1] += values_and_gradients(logits, targets) + list(mode_divergence(logits, logits.flip(0)))
    assert all(torch.equal(x, y) for x, y in zip(everything, before, strict=True))
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))
