"""Bars for people: one of the steps, and below it, while something takes long, one of what is going on inside.

The code that works says `track(batches, "scoring")` and knows no bar; who runs it says `showing(disable)` around it.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from tqdm.auto import tqdm
from transformers.utils import logging

from .modes import MODE_NAMES

# without the rate, which the time that is left says as well: all of it fits into 80 columns
STEPS_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
DELAY = 1.0  # seconds: what is done sooner shows no bar of its own, so that short steps do not flicker
Item = TypeVar("Item")

_shown: ContextVar[bool] = ContextVar("policy_split_progress", default=False)


@contextmanager
def showing(disable: bool | None) -> Iterator[None]:
    """Let `track` and `inner_bar` show bars inside; None: where standard error is a terminal."""
    token = _shown.set(sys.stderr.isatty() if disable is None else not disable)
    try:
        yield
    finally:
        _shown.reset(token)


def steps_bar(done: int, total: int, disable: bool | None) -> tqdm:
    """The bar of the steps, which stays; `mode_postfix` goes to its end."""
    return tqdm(total=total, initial=done, desc="train", bar_format=STEPS_FORMAT, disable=disable)


def inner_bar(total: float | None, name: str, unit: str = "it") -> tqdm:
    """A bar that goes away when it is closed, and does not come before a second has passed."""
    return tqdm(total=total, desc=name, unit=unit, leave=False, delay=DELAY, disable=not _shown.get())


def track(items: Iterable[Item], name: str, unit: str = "batch", total: int | None = None) -> Iterable[Item]:
    """The items, with an inner bar if bars are shown; without, the very same object."""
    if not _shown.get():
        return items
    return _tracked(items, name, unit, len(items) if isinstance(items, Sized) else total)


def mode_postfix(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Reward and entropy (nats) of the modes that are there, normal/high-entropy: short enough for 80 columns."""
    shown = {}
    for name in ("reward", "entropy"):
        values = [metrics[f"{mode}/{name}"] for mode in MODE_NAMES if f"{mode}/{name}" in metrics]
        shown[name] = "/".join(f"{value:.2f}" for value in values)
    return shown


def _tracked(items: Iterable[Item], name: str, unit: str, total: int | None) -> Iterator[Item]:
    with inner_bar(total, name, unit) as bar:
        for item in items:
            yield item
            bar.update()


@contextmanager
def progress_bars(shown: bool) -> Iterator[None]:
    """transformers draws a bar for every file it saves, into log files too."""
    before = logging.is_progress_bar_enabled()
    if not shown:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            logging.enable_progress_bar()
