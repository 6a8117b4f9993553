"""What compiled Triton kernels ask of the machine, read from their machine code: SASS for NVIDIA, GCN for AMD."""

import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton

NARROW = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}  # SASS; 4 bytes if none is named
GCN_BYTES = {"byte": 1, "ubyte": 1, "short": 2, "ushort": 2, "dword": 4, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16}


@dataclass
class Loop:
    """One iteration of a loop that reads or writes global memory, on its usual path, for one thread."""

    slots: int  # instructions that take a place in the pipeline of vectors
    special: int  # of them special functions: exp2, reciprocal, logarithm
    loaded: int  # bytes
    stored: int  # bytes
    waits: int  # barriers, shuffles and accesses to shared memory


@dataclass
class Code:
    registers: int
    stack: int  # bytes
    spills: int  # instructions
    shared: int  # bytes
    atomics: int
    loads: dict[int, int]  # bytes of a global access -> how many of them
    stores: dict[int, int]
    loops: list[Loop]

    def record(self) -> dict[str, Any]:
        return asdict(self)


def read(compiled: Any, backend: str) -> Code:
    """Of a kernel that Triton has compiled for "cuda" or "hip"."""
    return (_cuda if backend == "cuda" else _hip)(compiled)


def _cuda(compiled: Any) -> Code:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage, text = _tool("cuobjdump", "-res-usage", cubin.name), _tool("nvdisasm", "-c", cubin.name)
    lines, labels = _instructions(text, r"\s*(\.L_x_\d+):", r"\s*/\*[0-9a-f]+\*/\s+(\S.*)")
    lines = [re.sub(r"^@!?U?P\w+\s+", "", line) for line in lines]
    return Code(
        registers=int(re.search(r"REG:(\d+)", usage)[1]),
        stack=int(re.search(r"STACK:(\d+)", usage)[1]),
        spills=sum(line.startswith(("LDL", "STL")) for line in lines),
        shared=compiled.metadata.shared,
        atomics=sum(line.startswith(("ATOM", "RED.")) for line in lines),
        loads=_widths(lines, _sass_bytes, "LDG"),
        stores=_widths(lines, _sass_bytes, "STG"),
        loops=[_sass_loop(body) for body in _loops(lines, labels, r"\bBRA\b.*`\((\.L_x_\d+)\)")],
    )


def _hip(compiled: Any) -> Code:
    text = compiled.asm["amdgcn"]
    lines, labels = _instructions(text, r"(\.LBB\w+):", r"\t([a-z]\w+(?:\s.*)?)$")
    fields = {"registers": "vgpr_count", "spills": "vgpr_spill_count", "stack": "private_segment_fixed_size"}
    return Code(
        **{name: int(re.search(rf"\.{field}:\s+(\d+)", text)[1]) for name, field in fields.items()},
        shared=compiled.metadata.shared,
        atomics=sum("_atomic_" in line for line in lines),
        loads=_widths(lines, _gcn_bytes, "load"),
        stores=_widths(lines, _gcn_bytes, "store"),
        loops=[_gcn_loop(body) for body in _loops(lines, labels, r"^s_c?branch\w*\s+(\.LBB\w+)")],
    )


def _tool(name: str, *arguments: str) -> str:
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=True).stdout


def _instructions(text: str, label: str, instruction: str) -> tuple[list[str], dict[str, int]]:
    """Instructions in their order, and the position that each label has among them."""
    lines, labels = [], {}
    for line in text.splitlines():
        if found := re.match(label, line):
            labels[found[1]] = len(lines)
        elif found := re.match(instruction, line):
            lines.append(found[1])
    return lines, labels


def _loops(lines: list[str], labels: dict[str, int], branch: str) -> list[list[str]]:
    """The instructions of each innermost loop that has a global access."""

    def goal(line: str) -> int:
        found = re.search(branch, line)
        return labels.get(found[1], -1) if found else -1

    bodies = [_path_back(lines, start, goal) for start in sorted(set(labels.values()))]
    accesses = re.compile(r"^(LDG|STG)|^(global|buffer|flat)_(load|store)")
    return [body for body in bodies if body and any(accesses.search(line) for line in body)]


def _path_back(lines: list[str], start: int, goal: Any) -> list[str]:
    """Instructions from `start` back to it: forward branches are taken, exits are not; empty if there is no loop."""
    ends = [i for i in range(start, len(lines)) if goal(lines[i]) == start]
    body, i = [], start
    while ends and i <= ends[-1]:
        body.append(lines[i])
        aim = goal(lines[i])
        if aim == start:
            return body
        if 0 <= aim < i:  # a loop inside: this one is not innermost
            return []
        i = aim if i < aim <= ends[-1] else i + 1
    return []


def _sass_bytes(line: str, verb: str) -> int:
    opcode = line.split()[0].split(".")
    return next((NARROW[part] for part in opcode if part in NARROW), 4) if opcode[0] == verb else 0


def _gcn_bytes(line: str, verb: str) -> int:
    found = re.match(rf"(?:global|buffer|flat)_{verb}_(\w+)", line)
    return next((size for name, size in GCN_BYTES.items() if found[1] == name), 2) if found else 0


def _widths(lines: list[str], bytes_of: Any, verb: str) -> dict[int, int]:
    sizes = [size for line in lines if (size := bytes_of(line, verb))]
    return {size: sizes.count(size) for size in sorted(set(sizes))}


def _sass_loop(body: list[str]) -> Loop:
    return Loop(
        slots=len(body),
        special=sum(line.startswith("MUFU") for line in body),
        loaded=sum(_sass_bytes(line, "LDG") for line in body),
        stored=sum(_sass_bytes(line, "STG") for line in body),
        waits=sum(line.startswith(("BAR", "SHFL", "STS", "LDS")) for line in body),
    )


def _gcn_loop(body: list[str]) -> Loop:
    return Loop(
        slots=sum(line.startswith(("v_", "global_", "buffer_", "flat_", "ds_")) for line in body),
        special=sum(bool(re.match(r"v_(exp|log|rcp|rsq|sqrt)_", line)) for line in body),
        loaded=sum(_gcn_bytes(line, "load") for line in body),
        stored=sum(_gcn_bytes(line, "store") for line in body),
        waits=sum(line.startswith(("s_barrier", "ds_")) for line in body),
    )
