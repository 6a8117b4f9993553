"""Published rates of GPUs, and what bounds a kernel on them: bytes, instruction slots, special functions.

Sources: NVIDIA's datasheets of the SXM modules and the CUDA programming guide (4 warp instructions and 16 special
functions a cycle and multiprocessor); AMD's CDNA 3 white paper (4 units of 16 lanes, special functions at a quarter).
"""

from typing import NamedTuple


class Chip(NamedTuple):
    target: str
    multiprocessors: int
    gigahertz: float
    terabytes: float  # per second
    slots: int  # lane-instructions a cycle and multiprocessor
    special: int  # special functions a cycle and multiprocessor

    def seconds(self, per_cycle: int) -> float:
        """Of one operation, when every multiprocessor is busy with nothing else."""
        return 1 / (self.multiprocessors * self.gigahertz * 1e9 * per_cycle)


CHIPS = {
    "A100": Chip("cuda:80", 108, 1.41, 2.039, 128, 16),
    "H100": Chip("cuda:90", 132, 1.98, 3.35, 128, 16),
    "H200": Chip("cuda:90", 132, 1.98, 4.8, 128, 16),
    "B200": Chip("cuda:100", 148, 1.85, 8.0, 128, 16),
    "MI300X": Chip("hip:gfx942", 304, 2.1, 5.3, 64, 16),
}


class Bound(NamedTuple):
    by: str  # "memory", "issue" or "special"
    spare: float  # share of the memory's time that the slower of the other two leaves; below 0: it is the bound


def bound(chip: Chip, bytes_moved: float, slots: float, special: float) -> Bound:
    """What bounds a kernel that moves and computes so much for one logit."""
    memory = bytes_moved / (chip.terabytes * 1e12)
    others = {"issue": slots * chip.seconds(chip.slots), "special": special * chip.seconds(chip.special)}
    by, worst = max(others.items(), key=lambda item: item[1])
    return Bound("memory" if worst <= memory else by, 1 - worst / memory)
