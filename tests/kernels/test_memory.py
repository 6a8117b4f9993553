"""Peak memory of the loss, and the block that is kept from one large gradient to the next."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from policy_split_kernels import memory
from policy_split_kernels.linear import linear_token_loss

ROOT = Path(__file__).parents[2]


@pytest.fixture
def large():
    memory.free_memory()
    yield torch.empty(memory.SMALLEST // 4)
    memory.free_memory()


def test_a_freed_gradient_serves_the_next(large):
    first = memory.empty_like_dense(large)
    slot = first.data_ptr()
    view = first[5:]
    del first
    assert memory.kept_bytes() == 0  # a view of it is still in use
    other = memory.empty_like_dense(large)
    assert other.data_ptr() != slot
    del view
    assert memory.kept_bytes() == large.nbytes
    assert memory.empty_like_dense(large).data_ptr() == slot


def test_a_block_that_does_not_fit_is_let_go(large):
    del large
    for size in (4, 1):  # four times too large for the second, then too small for the third
        block = memory.empty_like_dense(torch.empty(size * memory.SMALLEST // 4))
        assert memory.kept_bytes() == 0
        del block
    assert memory.kept_bytes() == memory.SMALLEST
    memory.free_memory()
    assert memory.kept_bytes() == 0


def test_a_temporary_takes_any_block_that_is_large_enough(large):
    device = torch.device("cpu")
    block = memory.empty_dense((memory.SMALLEST,), torch.float32, device)  # four times as large
    slot = block.data_ptr()
    del block
    temporary = memory.empty_dense(large.shape, torch.float32, device, temporary=True)
    assert temporary.data_ptr() == slot
    assert memory.kept_bytes() == 0
    del temporary
    assert memory.kept_bytes() == 4 * memory.SMALLEST


def test_autograd_adds_another_gradient_of_a_tied_weight_in_place(large):
    weight = torch.zeros(len(large) // 256, 256, requires_grad=True)
    block = memory.empty_like_dense(weight)
    slot = block.data_ptr()
    del block
    hidden = torch.nn.functional.embedding(torch.arange(3), weight)
    linear_token_loss(hidden, weight, torch.arange(3), lambda logprobs, entropy, index: -logprobs).loss.backward()
    assert weight.grad.data_ptr() == slot
    assert torch.isfinite(weight.grad).all()


def test_two_blocks_are_kept_and_the_nearest_is_taken(large):
    sizes = [memory.SMALLEST * k // 4 for k in (2, 1, 3)]
    blocks = [memory.empty_dense((size,), torch.float32, torch.device("cpu")) for size in sizes]
    _, small, high = (block.data_ptr() for block in blocks)
    while blocks:
        del blocks[0]
    assert memory.kept_bytes() == 4 * memory.SMALLEST  # those that were freed last
    assert memory.empty_like_dense(large).data_ptr() == small
    assert memory.kept_bytes() == 4 * memory.SMALLEST
    assert memory.empty_dense((sizes[2],), torch.float32, torch.device("cpu")).data_ptr() == high


def test_small_gradients_are_left_to_torch():
    memory.free_memory()
    memory.empty_like_dense(torch.empty(1000))
    assert memory.kept_bytes() == 0


def test_a_kept_gradient_is_an_ordinary_tensor(large, tmp_path):
    x = memory.empty_like_dense(large.view(-1, 64)).fill_(2.0)
    assert x.shape == (large.numel() // 64, 64)
    assert x.is_contiguous()
    torch.save(x, tmp_path / "x.pt")
    assert torch.equal(torch.load(tmp_path / "x.pt"), x)
    leaf = torch.zeros_like(x).requires_grad_()
    leaf.backward(x)
    assert torch.equal(leaf.grad, x)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("name", "at_most"), [("policy_split", 1.03), ("inplace", 0.03), ("eager", 6.0)])
def test_peak_above_the_logits_in_units_of_them(name, at_most):
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.logits.memory", name], capture_output=True, text=True, check=True, cwd=ROOT
    )
    peak = json.loads(child.stdout)
    assert peak <= at_most
    assert name != "eager" or peak > 3  # the measurement sees what eager torch stores
