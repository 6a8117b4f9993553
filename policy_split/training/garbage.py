"""Python's garbage collector during a training: what was there before it is not looked through again and again."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def old_objects_aside() -> Iterator[None]:
    """gc.freeze() as long as the context lasts; nothing where somebody has frozen objects already.

    A full collection goes through every container of the process, half a million after the imports alone. The lists of
    rollouts cause one in some twenty steps of the built-in task, as long as a step.
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
