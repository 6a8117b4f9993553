"""Tiny models whose heads are as wide as vLLM's attention on a CPU wants them."""

import tiny
import torch

WIDE = {"head_dim": 32, "hidden_size": 32}
KINDS = {
    "qwen3": {"kind": "qwen3", **WIDE},
    "llama-tied": {"kind": "llama", **WIDE, "tie_word_embeddings": True, "scale": 1.0, "initializer_range": 0.2},
}
SETTINGS = {"rollout_engine": "vllm", "vllm_gpu_memory_utilization": 0.1}


def model(name="qwen3", **options):
    return tiny.model(**KINDS[name] | options)


@torch.no_grad()
def greedy(model, prompts, length, end_ids=(2,), tokens=26):
    """The likeliest of the first so many tokens, up to and with an end."""
    found = []
    for prompt in prompts:
        ids = list(prompt)
        while len(ids) < len(prompt) + length and not (len(ids) > len(prompt) and ids[-1] in end_ids):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1, :tokens].argmax()))
        found.append(ids[len(prompt) :])
    return found
