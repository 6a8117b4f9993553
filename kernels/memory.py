"""Memory of large CPU gradients, kept from one step to the next as a GPU's caching allocator does.

The C library gives a freed block of this size back to the operating system, and faulting its pages in again costs more
than computing the gradient in it. One block, the last that was freed, waits for the next gradient.
"""

import mmap
import threading
import weakref

import torch
from torch import Tensor

SMALLEST = 32 << 20  # bytes; below it the C library keeps memory itself
_lock = threading.RLock()  # a collection inside the lock may free a gradient
_kept: mmap.mmap | None = None


def empty_like_dense(x: Tensor) -> Tensor:
    """torch.empty of the shape, dtype and device of x, contiguous; from the kept block where there is one that fits."""
    nbytes = x.numel() * x.element_size()
    if x.device.type != "cpu" or nbytes < SMALLEST:
        return torch.empty(x.shape, dtype=x.dtype, device=x.device)
    block = _take(nbytes)
    view = memoryview(block)
    # The storage holds the view, and nobody else does: when it goes, the last tensor on this memory has gone.
    weakref.finalize(view, _keep, block).atexit = False
    flat = torch.frombuffer(view, dtype=x.dtype, count=x.numel())
    return flat.view(x.shape)


def free_memory() -> None:
    """Give the kept block back to the operating system; gradients that are in use are not touched."""
    global _kept
    with _lock:
        _kept = None


def kept_bytes() -> int:
    """Size of the block that waits for the next large gradient."""
    with _lock:
        return 0 if _kept is None else len(_kept)


def _take(nbytes: int) -> mmap.mmap:
    global _kept
    with _lock:
        block, _kept = _kept, None
    # A block much too large is let go: memory in use stays what the gradient needs.
    if block is not None and nbytes <= len(block) <= 1.25 * nbytes:
        return block
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return mmap.mmap(-1, nbytes)
    block = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared memory has no huge pages
    block.madvise(mmap.MADV_HUGEPAGE)
    return block


def _keep(block: mmap.mmap) -> None:
    global _kept
    with _lock:
        _kept = block
