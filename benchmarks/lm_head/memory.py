"""Peak memory of the LM head's loss with both gradients, above inputs and gradients: run by a child process of its own.

`python -m benchmarks.lm_head.memory policy_split` prints the bytes for each number of tokens.
"""

import json
import sys

import torch

from policy_split import linear_dual_mode_loss
from policy_split_kernels.memory import free_memory

from ..logits.candidates import ENTROPY_COEF
from ..logits.memory import status
from .linear import HeadBatch, eager_head_loss, loss_and_gradients

TOKENS = (256, 512, 1024, 2048, 4096)
WIDTH, VOCABULARY, CHUNK_BYTES = 512, 32000, 64 << 20


def chunked_head_loss(hidden, weight, targets, advantages, mode, old_logprobs, mask=None):
    return linear_dual_mode_loss(
        hidden, weight, targets, advantages=advantages, mode=mode, old_logprobs=old_logprobs, mask=mask,
        entropy_coef=ENTROPY_COEF, chunk_bytes=CHUNK_BYTES,
    ).loss  # fmt: skip


def peak_above_gradients(loss, tokens: int) -> int:
    """Highest - before - the gradients, in bytes; Linux: the kernel's own record of the process."""
    batch = HeadBatch(tokens, WIDTH, VOCABULARY, torch.float32)
    free_memory()  # what a loss before this one left for the next
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")
    before = status("VmRSS")
    loss_and_gradients(loss, batch)(0)
    return status("VmHWM") - before - batch.hidden.nbytes - batch.weight.nbytes


def main() -> None:
    loss = {"eager": eager_head_loss, "policy_split": chunked_head_loss}[sys.argv[1]]
    peak_above_gradients(loss, TOKENS[0])  # what is loaded or cached once is not the loss's
    print(json.dumps({tokens: peak_above_gradients(loss, tokens) for tokens in TOKENS}))


if __name__ == "__main__":
    main()
