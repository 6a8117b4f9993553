"""Peak memory of one loss with gradient, above the logits, in units of N x V: run by a child process of its own."""

import json
import sys

import torch

from .candidates import Batch, eager_loss, our_loss

TOKENS, VOCABULARY = 128, 151936


def peak_above_logits(name: str) -> float:
    """(highest - before) / bytes of the logits; Linux: the kernel's own record of the process."""
    batch, small = Batch(TOKENS, VOCABULARY, torch.float32, 0), Batch(4, 64, torch.float32, 0)
    run(name, small)  # what is loaded or cached once is not the loss's
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")
    before = status("VmRSS")
    run(name, batch)
    return (status("VmHWM") - before) / (batch.logits.numel() * batch.logits.element_size())


def run(name: str, batch: Batch) -> None:
    from policy_split import dual_mode_loss

    tokens = (batch.targets, batch.advantages, batch.mode, batch.old_logprobs)
    leaf = batch.logits.detach().requires_grad_()
    if name == "inplace":
        targets, advantages, mode, old = tokens
        loss = dual_mode_loss(
            leaf.view_as(leaf), targets, advantages=advantages, mode=mode, old_logprobs=old, inplace_gradient=True
        ).loss
    else:
        loss = {"eager": eager_loss, "policy_split": our_loss}[name](leaf, *tokens)
    torch.autograd.grad(loss, leaf)


def status(field: str) -> int:
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


if __name__ == "__main__":
    print(json.dumps(peak_above_logits(sys.argv[1])))
