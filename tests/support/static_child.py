"""Child of test_static: variants of the kernels, and kernels that must fail its checks. Prints one JSON object.

python static_child.py cuda:90 hip:gfx942
"""

import json
import sys
from pathlib import Path

import torch
import triton
import triton.language as tl

sys.path.append(str(Path(__file__).parents[2]))  # last: `kernels/` there is not Hugging Face's package
from benchmarks import static
from benchmarks.machine_code import assembly, compiled

CALLS = ("statistics", "gradient", "loss", "scale", "divergence", "divergence_gradient", *compiled.MIXTURE)


@triton.jit
def atomic_kernel(x_ptr):
    tl.atomic_add(x_ptr, 1.0)


@triton.jit
def straightforward_kernel(
    logits_ptr, targets_ptr, logprobs_ptr, entropy_ptr, stride, V: tl.constexpr, B: tl.constexpr
):
    """Log-prob and entropy as one would write them down first."""
    n = tl.program_id(0)
    row_ptr = logits_ptr + n.to(tl.int64) * stride
    highest, total, moment = -float("inf"), 0.0, 0.0
    for start in range(0, V, B):
        columns = start + tl.arange(0, B)
        logits = tl.load(row_ptr + columns, mask=columns < V, other=-float("inf")).to(tl.float32)
        new = tl.maximum(highest, tl.max(logits, 0))
        kept, e = tl.exp(highest - new), tl.exp(logits - new)
        total = total * kept + tl.sum(e, 0)
        moment = moment * kept + tl.sum(tl.where(logits == -float("inf"), 0.0, e * logits), 0)
        highest = new
    lse = highest + tl.log(total)
    tl.store(logprobs_ptr + n, tl.load(row_ptr + tl.load(targets_ptr + n)).to(tl.float32) - lse)
    tl.store(entropy_ptr + n, lse - moment / total)


def variants(target, device):
    """Compiled variants of each kernel over calls that differ in length, batch, alignment of the vectors and values."""
    with compiled.warm_ups(target) as kernels:
        before = {name: kernel.variants(device) for name, kernel in kernels.items()}
        for batch, length in ((1, 1), (1, 2), (3, 16), (16, 1), (4, 7)):
            logits = torch.zeros(batch, length + 1, 1048, dtype=torch.bfloat16)[:, :length, :1024]
            for name in CALLS:
                compiled.call(name, logits, "capped", shift=batch % 2, value=1 / batch)
        return {name: kernel.variants(device) - before[name] for name, kernel in kernels.items()}


def straightforward(target, name):
    logits, vectors = torch.zeros(2, 151936, dtype=torch.bfloat16), [torch.zeros(2) for _ in range(2)]
    kernel = straightforward_kernel.warmup(
        logits, torch.zeros(2, dtype=torch.int64), *vectors, 151936, 151936, 8192, grid=(2,), num_warps=16
    )
    record = assembly.read(kernel, target.backend).record() | {"job": ("first", "bfloat16", 151936, "full")}
    return {chip: x._asdict() for chip, x in static.bounds(record, name).items()}


def main(names):
    results = {}
    for device, name in enumerate(names):
        target = compiled.activate(name, device)
        tight = {"maxnreg": 32} if target.backend == "cuda" else {"waves_per_eu": 8}
        spilling = compiled.compiled_by(target, "loss", "bfloat16", 32000, "full", **tight)
        atomic = atomic_kernel.warmup(torch.zeros(1), grid=(1,), enable_fp_fusion=True)
        results[name] = {
            "variants": variants(target, device),
            "spilling": assembly.read(spilling, target.backend).record(),
            "atomic": assembly.read(atomic, target.backend).record(),
            "straightforward": straightforward(target, name),
        }
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1:])
