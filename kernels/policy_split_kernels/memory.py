"""Memory of large CPU tensors, kept from one step to the next as a GPU's caching allocator does.

The C library gives a freed block of this size back to the operating system, and faulting its pages in again costs more
than computing a gradient in it. The blocks that were freed last wait for the next step: two of them, for the logits and
the weight gradient of an LM head, or the two gradients of a divergence.
"""

import math
import mmap
import threading
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

SMALLEST = 32 << 20  # bytes; below it the C library keeps memory itself
KEPT_BLOCKS = 2
_lock = threading.RLock()  # a collection inside the lock may free a gradient
_kept: list[mmap.mmap] = []  # the last freed is the last


def empty_like_dense(x: Tensor) -> Tensor:
    """`empty_dense` of the shape, dtype and device of x."""
    return empty_dense(x.shape, x.dtype, x.device)


def empty_dense(shape: Sequence[int], dtype: torch.dtype, device: torch.device, *, temporary: bool = False) -> Tensor:
    """torch.empty, contiguous; from a kept block where there is one that fits.

    A block much too large serves only what is temporary: whoever keeps the tensor would keep all of it.
    """
    shape = torch.Size(shape)
    nbytes = shape.numel() * dtype.itemsize
    if device.type != "cpu" or nbytes < SMALLEST:
        return torch.empty(shape, dtype=dtype, device=device)
    block = _take(nbytes, math.inf if temporary else 1.25 * nbytes)
    view = memoryview(block)
    # The storage holds the view, and nobody else does: when it goes, the last tensor on this memory has gone.
    weakref.finalize(view, _keep, block).atexit = False
    # No view, which would share the storage with its base: autograd adds in place only to whom nobody else holds.
    return torch.frombuffer(view, dtype=dtype, count=shape.numel()).resize_(shape)


def free_memory() -> None:
    """Give the kept blocks back to the operating system; tensors that are in use are not touched."""
    with _lock:
        _kept.clear()


def kept_bytes() -> int:
    """Size of the blocks that wait for the next large tensors."""
    with _lock:
        return sum(map(len, _kept))


def _take(nbytes: int, most: float) -> mmap.mmap:
    with _lock:
        fitting = [block for block in _kept if nbytes <= len(block) <= most]
        nearest = min(fitting or _kept, key=lambda block: abs(len(block) - nbytes), default=None)
        if nearest is not None:
            _kept.remove(nearest)  # one that does not fit is let go: the new block takes its place
            if fitting:
                return nearest
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return mmap.mmap(-1, nbytes)
    block = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared memory has no huge pages
    block.madvise(mmap.MADV_HUGEPAGE)
    return block


def _keep(block: mmap.mmap) -> None:
    with _lock:
        _kept.append(block)
        del _kept[:-KEPT_BLOCKS]
