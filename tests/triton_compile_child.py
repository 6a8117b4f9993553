"""Child of test_triton_compile: compiles what the host functions would launch, for GPUs that are not there.

A stub stands for the driver, and every kernel's launch becomes a warm-up: Triton's own launcher then specialises the
real arguments and compiles for them, alignment, constants and options included. Prints one JSON object.

    python triton_compile_child.py cuda:90 hip:gfx942
"""

import contextlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import torch
import triton
import triton.language as tl
from policy_split_kernels import triton_divergence, triton_launch, triton_logits
from policy_split_kernels.reference import statistics_dtype
from triton.backends.compiler import GPUTarget

MODULES = {
    "logprobs_entropy_kernel": triton_logits,
    "logprobs_entropy_gradient_kernel": triton_logits,
    "dual_mode_loss_kernel": triton_logits,
    "scale_rows_kernel": triton_logits,
    "divergence_kernel": triton_divergence,
    "divergence_gradient_kernel": triton_divergence,
}  # of each kernel
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
# Of a global access in PTX or GCN assembly: the whole instruction, and what makes it one of 16 bytes.
ACCESS = {"cuda": r"\b{}\.global\S*", "hip": r"\b(?:global|buffer|flat)_{}_\w+"}
VERBS = {"cuda": {"loads": "ld", "stores": "st"}, "hip": {"loads": "load", "stores": "store"}}
WIDE = {"cuda": r"\.(?:v4\.[bfu]32|v2\.[bfu]64)$", "hip": r"_dwordx4$"}


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


@triton.jit
def atomic_kernel(x_ptr):
    tl.atomic_add(x_ptr, 1.0)


@contextlib.contextmanager
def warm_ups(target, **options):
    """The host functions with their launches caught."""
    machine = triton_launch.Machine(target.warp_size, 100, 50 << 20, nvidia=target.backend == "cuda")
    kernels = {name: WarmUp(getattr(module, name), **options) for name, module in MODULES.items()}
    with contextlib.ExitStack() as stack:
        for name, module in MODULES.items():
            stack.enter_context(mock.patch.object(module, name, kernels[name]))
        for module in (triton_logits, triton_divergence):
            stack.enter_context(mock.patch.object(module, "on_device", return_value=contextlib.nullcontext()))
        stack.enter_context(mock.patch.object(triton_launch, "machine_of", return_value=machine))
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
        triton_logits.logprobs_entropy(*common)
    elif name == "gradient":
        triton_logits.logprobs_entropy_gradient(*common, *(vector() for _ in range(5)), torch.empty_like(logits))
    elif name == "scale":
        triton_logits.scale_rows_(logits, vector())
    elif name == "divergence":
        triton_divergence.divergence(*pair)
    elif name == "divergence_gradient":
        wanted = (torch.empty_like(logits), optional(torch.empty_like(logits)))
        triton_divergence.divergence_gradient(*pair, *(vector() for _ in range(12)), *wanted)
    else:
        triton_logits.dual_mode_loss(
            *common, vector(), *(optional(vector()) for _ in range(3)), *(vector() for _ in range(3)),
            "cispo" if form == "cispo" else "clip", 0.2 * value, 0.28 * value, optional(3.0 * value), 2.0 * value,
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
    yield "loss", "bfloat16", 151936, "cispo"
    yield "loss", "bfloat16", 2053, "full"  # rows that no 16-byte load can take: the check must notice


def compiled_by(target, name, dtype, vocabulary, form, **options):
    with warm_ups(target, **options) as kernels:
        call(name, torch.zeros(1, 2, vocabulary, dtype=DTYPES[dtype]), form)
    (compiled,) = (compiled for kernel in kernels.values() for compiled in kernel.compiled)
    return compiled


def measured(compiled, backend):
    """What the machine code asks of the machine."""
    text = compiled.asm["ptx" if backend == "cuda" else "amdgcn"]
    found = {"atomics": len(re.findall(r"\b(?:atom|red)\.|_atomic_", text))}
    for kind, verb in VERBS[backend].items():
        accesses = re.findall(ACCESS[backend].format(verb), text)
        wide = sum(bool(re.search(WIDE[backend], access)) for access in accesses)
        found |= {f"wide_{kind}": wide, f"narrow_{kind}": len(accesses) - wide}
    if backend == "hip":
        fields = {"spills": r"\.vgpr_spill_count:\s+(\d+)", "stack": r"\.private_segment_fixed_size:\s+(\d+)"}
        return found | {field: int(re.search(pattern, text)[1]) for field, pattern in fields.items()}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage, code = tool("cuobjdump", "-res-usage", cubin.name), tool("nvdisasm", "-c", cubin.name)
    loops = [slots(body) for body in row_loops(code)]
    return found | {
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "stack": int(re.search(r"STACK:(\d+)", usage)[1]),
        "spills": len(re.findall(r"\b(?:LDL|STL)\b", code)),
        "loops": loops,
    }


def tool(name, *arguments):
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=True).stdout


def row_loops(code):
    """The usual path of each loop that contains an ex2: opcodes from a label to the branch back to it."""
    lines, labels = [], {}
    for line in code.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(lines)
        elif re.match(r"\s*/\*[0-9a-f]+\*/\s+\S", line):
            lines.append(re.sub(r"\s*/\*[0-9a-f]+\*/\s+", "", line, count=1))
    for start in sorted(set(labels.values())):
        if body := path_back(lines, labels, start):
            opcodes = [re.sub(r"^@!?U?P\w+\s+", "", line).split()[0] for line in body]
            if any(opcode.startswith("MUFU.EX2") for opcode in opcodes):
                yield opcodes


def path_back(lines, labels, start):
    """Instructions from `start` back to it: forward branches are taken, exits of the loop are not; None if no loop."""
    ends = [i for i in range(start, len(lines)) if labels.get(goal(lines[i])) == start]
    if not ends:
        return None
    body, i = [], start
    while i <= ends[-1]:
        body.append(lines[i])
        aim = labels.get(goal(lines[i]), -1)
        if aim == start:
            return body
        i = aim if i < aim <= ends[-1] else i + 1
    return None


def goal(line):
    branch = re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", line)
    return branch and branch[1]


def slots(opcodes):
    """An iteration of a loop: instructions, ex2 among them, and what it must not contain."""
    return {
        "slots": len(opcodes),
        "ex2": sum(opcode.startswith("MUFU.EX2") for opcode in opcodes),
        "waits": sum(opcode.startswith(("BAR", "SHFL", "STS", "LDS")) for opcode in opcodes),
    }


def variants(target, device):
    """Compiled variants of each kernel over calls that differ in length, batch, alignment of the vectors and values."""
    with warm_ups(target) as kernels:
        before = {name: kernel.variants(device) for name, kernel in kernels.items()}
        for batch, length in ((1, 1), (1, 2), (3, 16), (16, 1), (4, 7)):
            logits = torch.zeros(batch, length + 1, 1048, dtype=torch.bfloat16)[:, :length, :1024]
            for name in ("statistics", "gradient", "loss", "scale", "divergence", "divergence_gradient"):
                call(name, logits, "capped", shift=batch % 2, value=1 / batch)
        return {name: kernel.variants(device) - before[name] for name, kernel in kernels.items()}


def report(target, device):
    triton.runtime.driver.set_active(Driver(target, device))
    found = []
    for job in jobs():
        found.append({"job": job} | measured(compiled_by(target, *job), target.backend))
    result = {"kernels": found, "variants": variants(target, device)}
    spilling = {"maxnreg": 32} if target.backend == "cuda" else {"waves_per_eu": 8}
    mutant = compiled_by(target, "loss", "bfloat16", 32000, "full", **spilling)
    result["mutant_spills"] = measured(mutant, target.backend)
    atomic = atomic_kernel.warmup(torch.zeros(1), grid=(1,), enable_fp_fusion=True)
    result["mutant_atomics"] = measured(atomic, target.backend)["atomics"]
    return result


def main(names):
    results = {}
    for device, name in enumerate(names):
        backend, arch = name.split(":")
        target = GPUTarget(backend, int(arch) if backend == "cuda" else arch, 32 if backend == "cuda" else 64)
        results[name] = report(target, device)
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1:])
