"""Peak memory of the trainer's scoring and update, from logits and from hidden states: each in a process of its own.

`python -m benchmarks.trainer.memory [--tokens 1024 2048 4096]` prints a table: above what was there before, the
gradients of the parameters included. A small Llama with random weights and a large vocabulary; four rows, one in a
micro-batch, of one long response.
"""

import argparse
import ctypes
import json
import subprocess
import sys
import time

import torch
from accelerate import Accelerator
from transformers import LlamaConfig, LlamaForCausalLM

from policy_split.config import PolicySplitConfig
from policy_split.models.policy import Policy, fuse_lm_head
from policy_split.rollouts.rollout import Rollout, score_rollout
from policy_split.run_folder.checkpoints import Progress
from policy_split.training.update import PolicyUpdate
from policy_split_kernels.memory import free_memory

from ..logits.memory import status
from ..markdown import table
from .compare import Size
from .step_process import tokenizer_of

PROMPT, SMALL = 8, 16  # tokens; SMALL: of the run that comes before the measured one
KINDS = {"logits": {"fused_lm_head": False}, "hidden states": {}}


def small_model(vocabulary: int, width: int, layers: int, positions: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=positions, eos_token_id=1,
        )
    )  # fmt: skip


def random_rollout(tokens: int, vocabulary: int) -> Rollout:
    """One question, one response of each mode: four rows."""
    generator = torch.Generator().manual_seed(tokens)
    responses = torch.randint(2, vocabulary, (2, tokens), generator=generator)
    mask = torch.ones(4, tokens, dtype=torch.bool)
    return Rollout(
        num_prompts=1,
        num_generations=1,
        prompt_ids=torch.randint(2, vocabulary, (4, PROMPT), generator=generator),
        completion_ids=responses[[0, 1, 1, 0]],
        prompt_lengths=[PROMPT] * 4,
        completion_lengths=[tokens] * 4,
        mode=torch.tensor([0, 1, 0, 1]),
        mask=mask,
        train_mask=mask,
        truncated=torch.zeros(2, dtype=torch.bool),
        rewards=torch.zeros(4),
        texts=["", ""],
    )


def measure(kind: str, tokens: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Bytes above before of scoring and of scoring with the update; Linux: the kernel's own record of the process."""
    config = PolicySplitConfig(
        use_cpu=True, per_device_train_batch_size=1, num_iterations=2, beta=0.0, entropy_coef_high_entropy=0.01,
        lm_head_chunk_bytes=arguments.chunk_mib << 20, **KINDS[kind],
    )  # fmt: skip
    model = small_model(arguments.vocabulary, arguments.width, arguments.layers, PROMPT + tokens)
    fused, accelerator = fuse_lm_head(model, config), Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=1e-3))
    tokenizer = tokenizer_of(Size(1, 1, PROMPT, tokens, vocabulary=arguments.vocabulary))
    policy = Policy(model, tokenizer, fused=fused, chunk_bytes=config.lm_head_chunk_bytes)
    update = PolicyUpdate(accelerator, policy, optimizer, config, Progress())

    def step(rollout: Rollout) -> tuple[int, dict[str, float]]:
        score_rollout(policy, rollout, config)
        scored = status("VmHWM")
        advantages = torch.randn(rollout.mask.shape, generator=torch.Generator().manual_seed(0))
        sums = update.step(rollout, range(4), advantages, rollout.logprobs, None)
        return scored, {name: float(sums[name][0]) for name in ("loss", "grad_norm")}

    model.eval()
    step(random_rollout(SMALL, arguments.vocabulary))  # what is loaded or cached once is not the update's
    free_memory()
    ctypes.CDLL(None).malloc_trim(0)  # pages that the process has and no longer needs would be taken for none
    rollout = random_rollout(tokens, arguments.vocabulary)
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")
    before, started = status("VmRSS"), time.perf_counter()
    scored, numbers = step(rollout)
    seconds = time.perf_counter() - started
    return {"scoring": scored - before, "update": status("VmHWM") - before, "seconds": seconds} | numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 2048, 4096], help="of a response")
    for name, default in {"vocabulary": 65536, "width": 256, "layers": 2, "chunk_mib": 64}.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--kind", choices=KINDS, help="this one alone, in this process, as JSON")
    arguments = parser.parse_args()
    if arguments.kind:
        print(json.dumps(measure(arguments.kind, arguments.tokens[0], arguments)))
        return
    rows = []
    for tokens in arguments.tokens:
        options = [f"--{name.replace('_', '-')}={getattr(arguments, name)}" for name in ("vocabulary", "width")]
        options += [f"--layers={arguments.layers}", f"--chunk-mib={arguments.chunk_mib}", f"--tokens={tokens}"]
        found = {}
        for kind in KINDS:
            command = [sys.executable, "-m", "benchmarks.trainer.memory", *options, f"--kind={kind}"]
            found[kind] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for name in ("loss", "grad_norm"):  # no memory is printed unless both computed the same
            torch.testing.assert_close(*(torch.tensor(found[kind][name]) for kind in KINDS), rtol=1e-3, atol=1e-6)
        for kind, values in found.items():
            mib = [f"{values[part] / 2**20:,.0f}" for part in ("scoring", "update")]
            rows.append([f"{tokens:,}", kind, *mib, f"{values['seconds']:.1f}"])
    print(f"V = {arguments.vocabulary:,}, D = {arguments.width}, chunks of {arguments.chunk_mib} MiB, float32, CPU")
    print(table(["tokens", "from", "scoring, MiB", "with update, MiB", "seconds"], rows))


if __name__ == "__main__":
    main()
