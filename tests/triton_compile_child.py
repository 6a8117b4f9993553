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

import torch
import triton
import triton.language as tl
from policy_split_kernels import triton_launch, triton_logits
from policy_split_kernels.reference import statistics_dtype
from triton.backends.compiler import GPUTarget

KERNELS = [
    "logprobs_entropy_kernel", "logprobs_entropy_gradient_kernel", "dual_mode_loss_kernel", "scale_rows_kernel",
]  # fmt: skip
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
    """The host functions of triton_logits, with their launches caught."""
    machine = triton_launch.Machine(target.warp_size, 100, 50 << 20, nvidia=target.backend == "cuda")
    replaced = {name: WarmUp(getattr(triton_logits, name), **options) for name in KERNELS}
    replaced |= {"on_device": lambda _: contextlib.nullcontext()}
    previous = {name: getattr(triton_logits, name) for name in replaced}
    previous_machine, triton_launch.machine_of = triton_launch.machine_of, lambda _: machine
    vars(triton_logits).update(replaced)
    try:
        yield replaced
    finally:
        vars(triton_logits).update(previous)
        triton_launch.machine_of = previous_machine


def call(name, logits, *, optional=True, shift=0):
    """One call of a host function: `logits (B, T, V)`; `shift` moves the vectors off their alignment."""

    def vector(dtype=None):
        dtype = dtype or statistics_dtype(logits.dtype)
        return torch.ones(shift + logits.shape[0] * logits.shape[1], dtype=dtype)[shift:]

    mask = vector(torch.bool) if optional else None
    common = (logits, vector(torch.int64), vector() if optional else vector()[:1], mask, None, None)
    if name == "statistics":
        triton_logits.logprobs_entropy(*common)
    elif name == "gradient":
        triton_logits.logprobs_entropy_gradient(*common, *(vector() for _ in range(5)), torch.empty_like(logits))
    elif name == "scale":
        triton_logits.scale_rows_(logits, vector())
    else:
        behaviour = (vector(), vector(), vector()) if optional else (None, None, None)
        grad_logits = None if name == "loss_forward" else torch.empty_like(logits)
        coefficients = (vector(), vector(), vector())
        triton_logits.dual_mode_loss(
            *common, vector(), *behaviour, *coefficients, "clip", 0.2, 0.28, 3.0 if optional else None, 2.0, grad_logits
        )


def jobs():
    """(host function, dtype, V, optional arguments): each row of the launch tables, rarer forms at one size."""
    for dtype in DTYPES:
        vocabularies = (512, 8192, 32000, 151936)  # one for each row of the table
        for vocabulary in vocabularies:
            yield from ((name, dtype, vocabulary, True) for name in ("statistics", "gradient", "loss"))
        yield from ((name, dtype, 151936, False) for name in ("loss_forward", "scale"))
    yield "loss", "bfloat16", 151936, False
    yield "loss", "bfloat16", 2053, True  # rows that no 16-byte load can take: the check must notice


def compiled_by(target, name, dtype, vocabulary, optional, **options):
    with warm_ups(target, **options) as kernels:
        call(name, torch.zeros(1, 2, vocabulary, dtype=DTYPES[dtype]), optional=optional)
    (compiled,) = (compiled for kernel in KERNELS for compiled in kernels[kernel].compiled)
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


def variants_by_shape(target, device):
    """Compiled variants of each kernel over calls that differ in length, batch and alignment of the vectors."""
    with warm_ups(target) as kernels:
        before = {name: kernels[name].variants(device) for name in KERNELS}
        for batch, length in ((1, 1), (1, 2), (3, 16), (16, 1), (4, 7)):
            for name in ("statistics", "gradient", "loss", "scale"):
                call(
                    name, torch.zeros(batch, length + 1, 1048, dtype=torch.bfloat16)[:, :length, :1024], shift=batch % 2
                )
        return {name: kernels[name].variants(device) - before[name] for name in KERNELS}


def report(target, device):
    triton.runtime.driver.set_active(Driver(target, device))
    found = []
    for job in jobs():
        found.append({"job": job} | measured(compiled_by(target, *job), target.backend))
    result = {"kernels": found, "variants": variants_by_shape(target, device)}
    spilling = {"maxnreg": 32} if target.backend == "cuda" else {"waves_per_eu": 8}
    mutant = compiled_by(target, "loss", "bfloat16", 32000, True, **spilling)
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
