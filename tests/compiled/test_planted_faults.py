"""Faults that are put into copies of the kernels on purpose, and have to be found: the test of these tests."""

from typing import NamedTuple

import compiled_calls as calls
import pytest
import warp_order
from planted import call_in_place, call_loss_in_place, planted
from ttsem.sanitize import KernelFault

VOCABULARY = 2053  # a prime: a tail, and no vectors


class Fault(NamedTuple):
    file: str
    text: str
    broken: str
    kinds: tuple[str, ...]  # what is found


FAULTS = {
    "no mask of the tail, read": Fault(
        "gpu/tiles.py", "tl.load(pointers, mask=inside, other=other if TAIL else None)", "tl.load(pointers)",
        ("oob_read",),
    ),
    "no mask of the tail, written": Fault(
        "gpu/tiles.py", "mask=tail_inside(V, DEPTH, LANES, VEC) if TAIL else None,", "mask=None,",
        ("oob_write", "race"),
    ),
    "a row too far": Fault("gpu/tiles.py", "t = n - b * T\n", "t = n - b * T + 1\n", ("oob_read",)),
    "every program has every row": Fault(
        "gpu/logits.py", "n = tl.program_id(0)\n    while", "n = tl.program_id(0) * 0\n    while", ("race",)
    ),
}  # fmt: skip
BARRIERS = {
    "before the row is overwritten": (
        "target_x = load_target_x(row_ptr, transform, target, dtype)\n    tl.debug_barrier()",
        "target_x = load_target_x(row_ptr, transform, target, dtype)",
    ),
    "before the target's own gradient": ("tl.debug_barrier()\n    at_target = ", "at_target = "),
}
CALLS = {"gradient": call_in_place, "loss": call_loss_in_place}


def rows():
    """(1, 3, V), targets of several warps"""
    logits, targets = calls.random_rows(3, VOCABULARY, calls.torch.float32)
    targets[:] = calls.torch.tensor([40, 100, VOCABULARY - 1])
    return logits[None], targets


def launched_in_place(package, call):
    with warp_order.recorded() as records:
        CALLS[call](package, *rows())
    return records[-1]


@pytest.mark.parametrize("call", CALLS)
def test_nothing_is_found_in_an_unchanged_copy(tmp_path, call):
    record = launched_in_place(planted(tmp_path), call)
    order = warp_order.order_of(record, warp_order.last_module(record, 90))
    assert warp_order.lines(order.races) == []
    assert order.touched > 2 * 3 * VOCABULARY  # every element was read and written


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found(tmp_path, name):
    fault = FAULTS[name]
    package = planted(tmp_path, fault.file, fault.text, fault.broken)
    call = CALLS["loss" if "logits.py" in fault.file else "gradient"]
    with pytest.raises(KernelFault) as found:
        call(package, *rows())
    assert found.value.fault.kind in fault.kinds


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", BARRIERS)
def test_a_missing_barrier_is_found(tmp_path, name, call):
    package = planted(tmp_path, "gpu/rows.py", *BARRIERS[name])
    record = launched_in_place(package, call)
    order = warp_order.order_of(record, warp_order.last_module(record, 90))
    assert order.races
    assert all("rows.py" in place or "tiles.py" in place for pair in warp_order.lines(order.races) for place in pair)
