"""Every kernel at every row of the launch tables, in every dtype: values, gradients, faults, and how many launches."""

import compiled_calls as calls
import pytest
import torch

from policy_split_kernels.gpu import launch

# At least one for each row of the tables, with whole tiles and a tail: of 16-byte vectors, and odd, of single elements.
VOCABULARIES = (1000, 1021, 5008, 5003, 20000, 33001)
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
# What a loss and its backward launch: float16 forms the gradient in backward.
LOSS = {dtype: ["dual_mode_loss_kernel", "scale_rows_kernel"] for dtype in DTYPES}
LOSS[torch.float16] = ["dual_mode_loss_kernel", "logprobs_entropy_gradient_kernel"]
TABLES = (launch.STATISTICS_THREADS, launch.STREAMING_THREADS, launch.PAIR_THREADS)


def tile_size(vocabulary, dtype, threads_of, thread_bytes=launch.THREAD_BYTES):
    vector = 16 // dtype.itemsize if vocabulary % 8 == 0 else 1
    tiles = launch.tiling(vocabulary, dtype.itemsize, vector, threads_of, 32, thread_bytes)
    return tiles.DEPTH * tiles.LANES * tiles.VEC


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_sizes_below_meet_every_row_whole_tiles_and_tails(dtype):
    for table in TABLES:
        rows = {next(top for top in table if vocabulary <= top) for vocabulary in VOCABULARIES}
        assert rows == set(table)
        shapes = [(vocabulary // tile, vocabulary % tile) for vocabulary in VOCABULARIES
                  for tile in [tile_size(vocabulary, dtype, table)]]  # fmt: skip
        assert any(whole > 1 and tail for whole, tail in shapes)


def cases(vocabularies):
    """Each pair of a dtype and a vocabulary; the rarer dtypes at most sizes only where there is time."""
    rare = {torch.float16: (1021, 5008), torch.float64: (1000, 5003)}
    return [
        pytest.param(dtype, vocabulary, id=f"{dtype}-{vocabulary}",
                     marks=[pytest.mark.full] if vocabulary not in rare.get(dtype, vocabularies) else [])
        for dtype in DTYPES for vocabulary in vocabularies
    ]  # fmt: skip


@pytest.mark.parametrize(("dtype", "vocabulary"), cases(VOCABULARIES))
def test_statistics(launches, vocabulary, dtype):
    calls.check_statistics(*calls.random_rows(2, vocabulary, dtype))
    assert launches() == ["logprobs_entropy_kernel", "logprobs_entropy_gradient_kernel"]


@pytest.mark.parametrize(("dtype", "vocabulary"), cases(VOCABULARIES))
def test_loss(launches, vocabulary, dtype):
    """Three rows for two programs: one of them comes back for another row."""
    logits, targets = calls.random_rows(3 if vocabulary < 10000 else 2, vocabulary, dtype)
    calls.check_loss(logits, targets, calls.loss_tokens(logits, targets), upstream=-0.5)
    assert launches() == LOSS[dtype]


@pytest.mark.parametrize(("dtype", "vocabulary"), cases(VOCABULARIES[:4]))  # which are in both rows of its table
def test_divergence(launches, vocabulary, dtype):
    pair = (calls.random_rows(2, vocabulary, dtype, seed=seed)[0] for seed in (3, 4))
    calls.check_divergence(*pair)
    assert launches() == ["divergence_kernel", "divergence_gradient_kernel"]


@pytest.mark.parametrize(("dtype", "vocabulary"), cases(VOCABULARIES[:4]))
def test_jensen_shannon(launches, vocabulary, dtype):
    pair = (calls.random_rows(2, vocabulary, dtype, seed=seed)[0] for seed in (3, 4))
    calls.check_jensen_shannon(*pair)
    assert launches() == ["jensen_shannon_kernel", "jensen_shannon_gradient_kernel"]
