"""What a training step would need on other machines, as tables of docs/scaling.md.

    python -m benchmarks.scaling

Rates of this machine and steps of the trainer are measured, and the cost model is held against them; for GPUs it is
given the rates of their data sheets. `--predictions` leaves the measurements out.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
from typing import Any

from ..interleave import machine as this_machine
from ..markdown import table
from .cost_model import Batch, Machine, Model, Setup, memory, micro_batches, parameters, seconds
from .process import CHUNK_BYTES, SETTINGS, shape

CHECKED = [(4, 256, 4096), (6, 384, 8192), (8, 512, 4096)]  # layers, width, vocabulary
# glibc serves blocks of up to 32 MB from heaps that it keeps; with these each block above 256 KiB is mapped by itself
# and handed back when it is freed, so that the peak is what was asked for. Steps are slower then: times go without.
HANDED_BACK = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144"}
KINDS = {"one": Setup(), "ddp": Setup(ranks=2), "fsdp2": Setup(ranks=2, sharded=True)}

# NVIDIA's data sheets of H100 SXM and H200 SXM: dense bfloat16 989 TFLOP/s, 80 GB at 3.35 TB/s and 141 GB at 4.8 TB/s,
# NVLink 900 GB/s, half of it each way; data sheet of DGX H100: one 400 Gbit/s adapter a GPU.
SHEET_FLOPS, NVLINK, ADAPTER = 989e12, 450e9, 50e9
GPUS = {"H100": (3.35e12, 80e9), "H200": (4.8e12, 141e9)}
# Assumptions, not measurements: shares of those rates that are reached, and seconds to start a layer's kernels.
GEMM_SHARE, MEMORY_SHARE, LINK_SHARE, CALL, USABLE = 0.5, 0.8, 0.7, 3e-4, 0.9

# The shapes of Qwen3-1.7B, Qwen3-8B, Qwen3-32B and Llama-3.1-70B, from their published configurations
MODELS = {
    "1.7B": Model(28, 2048, 16, 8, 128, 6144, 151936, tied=True),
    "8B": Model(36, 4096, 32, 8, 128, 12288, 151936),
    "32B": Model(64, 5120, 64, 8, 128, 25600, 151936),
    "70B": Model(80, 8192, 64, 8, 128, 28672, 128256),
}
BATCH = Batch(questions=64, generations=8, prompt=512, response=2048, micro_rows=4, generation_rows=64)
FIRST_PASS = ((BATCH.prompt, BATCH.response), (200, 2000), (2000, 500))


def gpu(name: str, ranks: int) -> Machine:
    """Eight GPUs to a node; between nodes a GPU has its adapter."""
    bandwidth, _ = GPUS[name]
    link = (NVLINK if ranks <= 8 else ADAPTER) * LINK_SHARE
    return Machine(SHEET_FLOPS * GEMM_SHARE, bandwidth * MEMORY_SHARE, link, CALL)


def run(kind: str, numbers: tuple[int, ...], settings: dict[str, str] | None = None) -> dict[str, float]:
    """What `benchmarks.scaling.process` measures, in one process or in two, with `settings` in their environment."""
    world = KINDS[kind].ranks
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.scaling.process", kind, *map(str, numbers)]
    group = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
    group = group | {"MASTER_PORT": str(port)} if world > 1 else {}
    started = []
    for rank in range(world):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if world > 1 else {}
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | (settings or {}) | group | own
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    printed = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise RuntimeError(f"{' '.join(command)} failed")
    return json.loads(printed[0].splitlines()[-1])


def check(kind: str, numbers: tuple[int, ...], found: dict[str, float]) -> list[str]:
    """A row of predicted and measured step, generation and memory."""
    m, setup = shape(*numbers), KINDS[kind]._replace(compute_bytes=4, chunk_bytes=CHUNK_BYTES)
    counts = (SETTINGS["prompts_per_step"], SETTINGS["num_generations"], found["prompt"], found["response"])
    b = Batch(*counts, SETTINGS["per_device_train_batch_size"])
    rates = Machine(found["flops"], found["bandwidth"], found.get("link", 1.0), found["call"], overlap=False)
    time, peak = seconds(m, b, setup, rates), memory(m, b, setup)["peak"]
    cells = [f"{parameters(m) / 1e6:.1f} M", kind]
    for name in ("generation", "step"):
        cells += [f"{time[name]:.2f}", f"{found[name]:.2f}", f"{time[name] / found[name]:.2f}"]
    sizes = [f"{size / 1e6:.0f}" for size in (peak, found["used"])]
    return [*cells, *sizes, f"{peak / found['used']:.2f}", f"{found['peak'] / 1e6:.0f}"]


def measured() -> str:
    rows, rates = [], []
    for numbers in CHECKED:
        for kind in KINDS:
            found = run(kind, numbers)
            found["used"] = run(kind, numbers, HANDED_BACK)["peak"]
            rows.append(check(kind, numbers, found))
            link = f"{found['link'] / 1e9:.2f}" if "link" in found else ""
            size = f"{parameters(shape(*numbers)) / 1e6:.1f} M"
            figures = (f"{found['flops'] / 1e9:.0f}", f"{found['bandwidth'] / 1e9:.1f}", f"{found['call'] * 1e6:.0f}")
            rates.append([size, kind, *figures, link])
    head = ["model", "processes", "GEMM, GFLOP/s", "memory, GB/s", "a layer's start, us", "gloo all-reduce, GB/s"]
    parts = ["generation, s", "measured", "ratio", "step, s", "measured", "ratio", "peak, MB", "measured", "ratio"]
    parts.append("with glibc's heaps")
    return f"{table(head, rates)}\n\n{table(['model', 'processes', *parts], rows)}"


def predicted() -> str:
    """Every model on each number of GPUs, DDP for one and FSDP2 for more, with activation checkpointing."""
    rows = []
    for name, m in MODELS.items():
        for ranks in (1, 8, 64):
            setup = Setup(ranks, sharded=ranks > 1, checkpointing=True)
            for kind, (_, size) in GPUS.items():
                need, time = memory(m, BATCH, setup), seconds(m, BATCH, setup, gpu(kind, ranks))
                fits = "yes" if need["peak"] < USABLE * size else "no"
                sizes = [f"{need[part] / 1e9:.1f}" for part in ("states", "generation", "update", "peak")]
                phases = ("generation", "scoring", "update", "communication", "step")
                rows.append([name, str(ranks), kind, *sizes, fits, *(f"{time[part]:.0f}" for part in phases)])
    head = ["model", "GPUs", "", "states, GB", "generation", "update", "peak", "fits"]
    return table([*head, "generation, s", "scoring", "update", "communication", "step"], rows)


def levers() -> str:
    """What each choice changes, of the 8B model on 8 H100."""
    base = Setup(8, sharded=True, checkpointing=True)
    batches: dict[str, tuple[Setup, Batch]] = {
        "as above": (base, BATCH),
        "no activation checkpointing": (base._replace(checkpointing=False), BATCH),
        "N x V logits": (base._replace(fused_head=False), BATCH),
        "16 rows in a micro-batch": (base, BATCH._replace(micro_rows=16)),
        "DDP": (base._replace(sharded=False), BATCH),
    }
    rows = []
    for name, (setup, b) in batches.items():
        need, time = memory(MODELS["8B"], b, setup), seconds(MODELS["8B"], b, setup, gpu("H100", 8))
        figures = [f"{need[part] / 1e9:.1f}" for part in ("states", "generation", "update", "peak")]
        rows.append(
            [name, str(micro_batches(b, setup)), *figures, f"{time['communication']:.0f}", f"{time['step']:.0f}"]
        )
    head = ["", "micro-batches", "states, GB", "generation", "update", "peak", "communication, s", "step, s"]
    return table(head, rows)


def first_pass() -> str:
    """What is left of a step of the 8B model on 8 H200 with one forward less, with prompts once, and late in a run."""
    base = Setup(8, sharded=True, checkpointing=True)
    both = base._replace(first_pass=True, shared_prompts=True)
    setups = {
        "scored apart, every row with its prompt": base,
        "scored by the update": base._replace(first_pass=True),
        "and prompts once": both,
        "and 70 % of the questions without a gradient": both._replace(live=0.3),
    }
    rows = []
    for name, setup in setups.items():
        for prompt, response in FIRST_PASS:
            b = BATCH._replace(prompt=prompt, response=response)
            time = seconds(MODELS["8B"], b, setup, gpu("H200", 8))
            figures = [f"{time[part]:.0f}" for part in ("generation", "scoring", "update", "step")]
            rows.append([name, f"{prompt}:{response}", *figures])
    return table(["8B on 8 H200", "prompt:response", "generation, s", "scoring", "update", "step"], rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--predictions", action="store_true", help="leave the measurements out")
    options: Any = parser.parse_args(arguments)
    if not options.predictions:
        print("  ".join(f"{key}: {value}" for key, value in this_machine().items()))
        print(f"\n## Measured here, and what the model says\n\n{measured()}\n")
    print(f"## Predicted for GPUs: not measured yet\n\n{predicted()}\n\n{levers()}\n\n{first_pass()}")
