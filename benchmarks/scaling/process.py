"""Run by benchmarks.scaling in each process: rates of this machine, then steps of the trainer; one line of JSON.

`python -m benchmarks.scaling.process KIND LAYERS WIDTH VOCABULARY`, with KIND one, ddp or fsdp2.
"""

import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate.state import DistributedType, PartialState
from transformers import Qwen3Config, Qwen3ForCausalLM

from policy_split.config import PolicySplitConfig
from policy_split.countdown.model import countdown_tokenizer
from policy_split.training.trainer import PolicySplitTrainer

from .cost_model import Model

STEPS = 3
CHUNK_BYTES = 8 * 2**20
SETTINGS = {"prompts_per_step": 2, "num_generations": 4, "max_completion_length": 24, "per_device_train_batch_size": 16}
SETTINGS |= {"use_cpu": True, "save_steps": 0, "disable_tqdm": True, "max_steps": 100, "learning_rate": 1e-5}
PROMPT = "1 2 3 4 " * 6


def shape(layers: int, width: int, vocabulary: int) -> Model:
    return Model(layers, width, width // 64, max(1, width // 128), 64, 3 * width, vocabulary)


def make_model(m: Model) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=m.vocabulary, hidden_size=m.width, intermediate_size=m.mlp, num_hidden_layers=m.layers,
        num_attention_heads=m.heads, num_key_value_heads=m.kv_heads, head_dim=m.head_dim, tie_word_embeddings=m.tied,
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


def median_seconds(function: Callable[[], object], rounds: int = 40, warm_up: int = 10) -> float:
    """The same number of calls on every rank, as some of them are collective."""
    times = []
    for _ in range(warm_up + rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times[warm_up:])


def rates(m: Model) -> dict[str, float]:
    """GEMM and memory rate with as many processes as there are, all-reduce rate, and seconds to start a layer."""
    a, b = torch.randn(512, m.width), torch.randn(m.mlp, m.width)
    found = {"flops": 2 * 512 * m.width * m.mlp / median_seconds(lambda: a @ b.T)}
    x, y = torch.ones(2**25), torch.ones(2**25)
    found["bandwidth"] = 2 * 4 * x.numel() / median_seconds(lambda: y.copy_(x))
    small = make_model(Model(4, 64, 1, 1, 64, 64, 64)).eval()
    ids = torch.zeros(1, 1, dtype=torch.long)
    with torch.no_grad():
        found["call"] = median_seconds(lambda: small(ids, use_cache=True)) / 4
    if dist.is_initialized():
        world = dist.get_world_size()
        taken = median_seconds(lambda: dist.all_reduce(x[: 2**22]))
        found["link"] = 2 * (world - 1) / world * 4 * 2**22 / taken
    return found


def status(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def reward(completions: list[str]) -> list[float]:
    """Different in every group, so that every row trains."""
    return [float(number % 2) for number in range(len(completions))]


def make_trainer(m: Model, folder: str) -> PolicySplitTrainer:
    config = PolicySplitConfig(output_dir=folder, lm_head_chunk_bytes=CHUNK_BYTES, **SETTINGS)
    return PolicySplitTrainer(make_model(m), countdown_tokenizer(13), reward, [{"prompt": PROMPT}] * 8, config)


def measured(m: Model, folder: str) -> dict[str, float]:
    make_trainer(Model(1, 64, 1, 1, 64, 64, 64), folder).step()  # loads what is loaded at the first use
    gc.collect()
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM, the peak, begins anew
    trainer = make_trainer(m, folder)
    steps, generation = [], []
    sample = trainer.sample

    def timed():
        start = time.perf_counter()
        rollout = sample()
        generation.append(time.perf_counter() - start)
        return rollout

    trainer.sample = timed
    for _ in range(STEPS + 1):
        start = time.perf_counter()
        _, rollout = trainer.step()
        steps.append(time.perf_counter() - start)
    return {
        "step": statistics.median(steps[1:]),
        "generation": statistics.median(generation[1:]),
        "peak": status("VmHWM") - before,
        "prompt": max(rollout.prompt_lengths),
        "response": statistics.mean(rollout.completion_lengths),
    }


def main(kind: str, *numbers: str) -> None:
    torch.set_num_threads(1)
    m = shape(*map(int, numbers))
    if kind != "one":
        state = PartialState(cpu=True)
        if kind == "fsdp2":  # accelerate shards on GPUs alone, so that it has to be told that these are some
            state._shared_state["distributed_type"] = DistributedType.MULTI_GPU
            os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
            os.environ["FSDP_AUTO_WRAP_POLICY"] = "TRANSFORMER_BASED_WRAP"
    before = rates(m)
    with tempfile.TemporaryDirectory() as folder:
        found = measured(m, folder)
    after = rates(m)
    found |= {name: (before[name] + after[name]) / 2 for name in before}
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(found))
    if kind != "one":
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
