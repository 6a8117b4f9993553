"""Compiles what the Triton kernels' host functions would launch, for GPUs that are not there.

A stub stands for the driver, and every kernel's launch becomes a warm-up: Triton's own launcher then specialises the
real arguments and compiles for them, alignment, constants and options included. Prints the records of `assembly`:

    python -m benchmarks.machine_code.compiled cuda:90 hip:gfx942
"""

import contextlib
import json
import sys
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget

from policy_split_kernels.contract import statistics_dtype
from policy_split_kernels.gpu import divergence as gpu_divergence
from policy_split_kernels.gpu import launch as gpu_launch
from policy_split_kernels.gpu import logits as gpu_logits

from . import assembly

MODULES = {
    "logprobs_entropy_kernel": gpu_logits,
    "logprobs_entropy_gradient_kernel": gpu_logits,
    "dual_mode_loss_kernel": gpu_logits,
    "scale_rows_kernel": gpu_logits,
    "divergence_kernel": gpu_divergence,
    "divergence_gradient_kernel": gpu_divergence,
    "jensen_shannon_kernel": gpu_divergence,
    "jensen_shannon_gradient_kernel": gpu_divergence,
}  # of each kernel
MIXTURE = ("jensen_shannon", "jensen_shannon_gradient")  # bound by their instructions: three of them are transcendental
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


class Driver:
    """What Triton asks of a driver before it compiles."""

    def __init__(self, target, device):
        self.target, self.device = target, device

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return self.device

    def get_current_stream(self, device):
        return 0


class WarmUp:
    """In a kernel's place: `kernel[grid](...)` compiles and keeps the result."""

    def __init__(self, kernel, **options):
        self.kernel, self.options, self.compiled = kernel, options, []

    def __getitem__(self, grid):
        def compile_it(*args, **kwargs):
            self.compiled.append(self.kernel.warmup(*args, grid=grid, **{**kwargs, **self.options}))

        return compile_it

    def variants(self, device):
        return len(self.kernel.device_caches[device][0])


@contextlib.contextmanager
def warm_ups(target, **options):
    """The host functions with their launches caught."""
    machine = gpu_launch.Machine(target.warp_size, 100, 50 << 20, nvidia=target.backend == "cuda")
    kernels = {name: WarmUp(getattr(module, name), **options) for name, module in MODULES.items()}
    with contextlib.ExitStack() as stack:
        for name, module in MODULES.items():
            stack.enter_context(mock.patch.object(module, name, kernels[name]))
        for module in (gpu_logits, gpu_divergence):
            stack.enter_context(mock.patch.object(module, "on_device", return_value=contextlib.nullcontext()))
        stack.enter_context(mock.patch.object(gpu_launch, "machine_of", return_value=machine))
        yield kernels


def call(name, logits, form="full", *, shift=0, value=1.0):
    """One call of a host function: `logits (B, T, V)`; `form` says which optional arguments there are.

    `shift` moves the vectors off their alignment, `value` changes every number that is passed by value.
    """
    full = form != "plain"

    def vector(dtype=None):
        dtype = dtype or statistics_dtype(logits.dtype)
        return torch.ones(shift + logits.shape[0] * logits.shape[1], dtype=dtype)[shift:]

    def optional(x):
        return x if full else None

    mask = optional(vector(torch.bool))
    inverse_temperature = vector() if full else vector()[:1]
    softcap = 30.0 * value if form == "capped" else None
    keep_mask = torch.ones(logits.shape, dtype=torch.bool) if form == "kept" else None
    common = (logits, vector(torch.int64), inverse_temperature, mask, softcap, keep_mask)
    pair = (logits, torch.empty_like(logits), inverse_temperature, mask)
    if name == "statistics":
        gpu_logits.logprobs_entropy(*common)
    elif name == "gradient":
        gpu_logits.logprobs_entropy_gradient(*common, *(vector() for _ in range(6)), torch.empty_like(logits))
    elif name == "scale":
        gpu_logits.scale_rows_(logits, vector())
    elif name == "divergence":
        gpu_divergence.divergence(*pair)
    elif name == "divergence_gradient":
        wanted = (torch.empty_like(logits), optional(torch.empty_like(logits)))
        gpu_divergence.divergence_gradient(*pair, *(vector() for _ in range(12)), *wanted)
    elif name == "jensen_shannon":
        gpu_divergence.jensen_shannon(*pair, 0.5 * value)
    elif name == "jensen_shannon_gradient":
        wanted = (torch.empty_like(logits), optional(torch.empty_like(logits)))
        gpu_divergence.jensen_shannon_gradient(*pair, 0.5 * value, *(vector() for _ in range(7)), *wanted)
    else:
        gpu_logits.dual_mode_loss(
            *common, vector(), *(optional(vector()) for _ in range(3)), *(vector() for _ in range(3)),
            form if form in ("cispo", "sapo") else "clip", 0.2 * value, 0.28 * value, optional(3.0 * value),
            2.0 * value, (1.0 * value, 1.05 * value), form == "sapo", optional(10.0 * value),
            None if name == "loss_forward" else torch.empty_like(logits),
        )  # fmt: skip


def jobs():
    """(host function, dtype, V, form): each row of the launch tables, rarer forms at one size."""
    sums, streams = ("statistics", "loss", "divergence"), ("gradient", "divergence_gradient")
    for dtype in DTYPES:
        # One vocabulary for each row of the two tables.
        yield from ((name, dtype, vocabulary, "full") for vocabulary in (512, 8192, 32000, 151936) for name in sums)
        yield from ((name, dtype, vocabulary, "full") for vocabulary in (512, 8192, 151936) for name in streams)
        yield from ((name, dtype, 151936, "plain") for name in ("loss_forward", "scale"))
    yield from ((name, "bfloat16", 151936, "plain") for name in ("loss", "divergence_gradient"))
    yield from (
        (name, "bfloat16", 151936, form) for name in ("statistics", "gradient", "loss") for form in ("capped", "kept")
    )
    yield from (("loss", "bfloat16", 151936, form) for form in ("cispo", "sapo"))
    yield from ((name, dtype, 151936, "full") for name in MIXTURE for dtype in DTYPES)
    yield from ((name, "bfloat16", vocabulary, "full") for name in MIXTURE for vocabulary in (512, 8192))
    yield "loss", "bfloat16", 2053, "full"  # rows that no 16-byte load can take: the check must notice


def compiled_by(target, name, dtype, vocabulary, form, **options):
    with warm_ups(target, **options) as kernels:
        call(name, torch.zeros(1, 2, vocabulary, dtype=DTYPES[dtype]), form)
    (compiled,) = (compiled for kernel in kernels.values() for compiled in kernel.compiled)
    return compiled


def activate(name, device):
    """The target of this name; `device` tells the targets of one process apart in Triton's caches."""
    backend, arch = name.split(":")
    target = GPUTarget(backend, int(arch) if backend == "cuda" else arch, 32 if backend == "cuda" else 64)
    triton.runtime.driver.set_active(Driver(target, device))
    return target


def main(dtypes, names):
    records = {}
    for device, name in enumerate(names):
        target = activate(name, device)
        records[name] = [
            {"job": job} | assembly.read(compiled_by(target, *job), target.backend).record()
            for job in jobs()
            if job[1] in dtypes
        ]
    print(json.dumps(records))


if __name__ == "__main__":
    main(sys.argv[1].split(","), sys.argv[2:])
