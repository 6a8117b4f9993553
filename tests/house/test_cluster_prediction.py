"""The model that says whether a cluster that holds its row would pay: literal numbers of small cases."""

import pytest

from benchmarks.machine_code import cluster
from benchmarks.machine_code.cluster import Kernel

KERNEL = Kernel(151936, 2, 16.0, 2.0)


@pytest.mark.parametrize(
    ("cache", "lines", "expected"),
    [(1000, 1, 0.0), (1000, 2, 0.5), (500, 1, 0.5), (500, 2, 0.75), (4000, 2, 0.0)],
)
def test_share_that_is_read_again(cache, lines, expected):
    """Ten rows of 100 bytes: what the cache holds of them, or of them and their gradients."""
    assert cluster.missed(Kernel(50, 2, 1.0, 0.0), 10, cache, lines) == expected


def test_bound_by_memory_it_gains_what_it_does_not_read():
    again, ratio = cluster.faster("H200", KERNEL, 2, 1.0)
    assert again == pytest.approx(1 - (50 << 20) / (2 * 132 * 303872))
    assert ratio == pytest.approx(1 + again / 2)


def test_bound_by_instructions_it_gains_nothing():
    busy = KERNEL._replace(slots=200.0)
    assert cluster.faster("H200", busy, 2, 0.5)[1] == pytest.approx(200 / 200.125)


@pytest.mark.parametrize(("vocabulary", "expected"), [(32000, 1), (58112, 1), (58113, 2), (151936, 4), (500_000, 0)])
def test_cluster_size(vocabulary, expected):
    """Two rows in flight: 2 * 2 V bytes in the shared memory of so many multiprocessors."""
    assert cluster.cluster_size(KERNEL._replace(vocabulary=vocabulary)) == expected


def test_every_case_has_a_row():
    assert len(cluster.rows(KERNEL)) == 2 * 2 * 2
    assert cluster.rows(KERNEL)[4] == ["H200", "ordinary stores", "whole", "35%", "1.17x"]
