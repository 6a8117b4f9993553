"""Python's garbage collector during a training: what was there before it is not looked through in each step."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def old_objects_aside() -> Iterator[None]:
    """gc.freeze() as long as the context lasts; nothing where somebody has frozen objects already.

    A collection goes through every container of the process, half a million after the imports alone, and the lists of a
    rollout cause one in each step: a tenth of the built-in task's step.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
