"""Whether a configuration still fits: into the time that was granted, and into the GPU's memory."""

import time

import torch


class Budget:
    """Seconds from now on; what a configuration will cost is judged by those that were measured before."""

    def __init__(self, seconds: float):
        self.seconds, self.start = seconds, time.perf_counter()
        self.checking, self.timing_per_byte = 0.0, 0.0

    def elapsed(self) -> float:
        return time.perf_counter() - self.start

    def spent(self, nbytes: int, checking: float, timing: float) -> None:
        """Checking, which holds the compilations, hardly grows with the size and shrinks from one to the next."""
        self.checking = checking
        self.timing_per_byte = max(self.timing_per_byte, timing / nbytes)

    def refuses(self, nbytes: int) -> str:
        """Why a configuration of this size is not started, or nothing."""
        expected = self.checking + self.timing_per_byte * nbytes
        if self.elapsed() + expected <= self.seconds:
            return ""
        return f"{expected:.0f} s expected, {max(self.seconds - self.elapsed(), 0):.0f} s left of {self.seconds:.0f} s"


def fits(nbytes: int, device: str) -> tuple[str, bool]:
    """Why N x V of this size cannot be measured, or nothing; and whether two of them can, as a divergence needs.

    Two sets of inputs (or one, beyond any cache), the copy's target, one gradient, and rows in float32 for the checks.
    """
    if device != "cuda":
        return "", True
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    rest = 4 << 30
    if 3 * nbytes + rest > free:
        return (
            f"does not fit: three times {nbytes / 2**30:.1f} GiB and {rest >> 30} GiB of {free / 2**30:.1f} GiB",
            False,
        )
    return "", 4 * nbytes + rest <= free


def head_fits(tokens: int, width: int, vocabulary: int, itemsize: int, device: str) -> str:
    """Why an LM head of this size cannot be measured, or nothing: what the products and the checks need.

    The weight as it is, in float64, and its gradient in float32; logits and their gradient; rows of logits in float64.
    Who needs more, as the whole of the logits in float32, runs out of memory, and that is recorded.
    """
    if device != "cuda":
        return ""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    needed = vocabulary * width * (itemsize + 8 + 4) + 2 * tokens * vocabulary * itemsize + (8 << 30)
    return "" if needed <= free else f"does not fit: {needed / 2**30:.1f} GiB of {free / 2**30:.1f} GiB"
