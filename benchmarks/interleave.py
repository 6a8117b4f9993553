"""Fair timing on a noisy machine: every candidate once in each round, in rotating order, over rotating inputs."""

import statistics
import time
from collections.abc import Callable

import torch


def interleaved(
    candidates: dict[str, Callable[[int], object]], rounds: int, warmup: int = 2, synchronize: Callable = lambda: None
) -> dict[str, list[float]]:
    """Seconds of each candidate in each round; a candidate is called with the round's number, to rotate its inputs."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    for k in range(-warmup, rounds):
        turn = k % len(names)
        for name in names[turn:] + names[:turn]:
            synchronize()
            start = time.perf_counter()
            result = candidates[name](k)
            synchronize()
            if k >= 0:
                seconds[name].append(time.perf_counter() - start)
            del result
    return seconds


def ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> float:
    """How many times faster: the median of the ratios round by round, so that a drift of the machine cancels."""
    return statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True))


def machine() -> dict[str, str]:
    """What a figure must be quoted with."""
    import datetime
    import platform

    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as lines:
            model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {
        "cpu": model,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }
