"""The peers of the LM head: losses as `linear.eager_head_loss`, each imported when it is asked for.

A peer that computes another loss is checked against that loss, and its time is a bound: it leaves work out.
"""

import functools
import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from ..logits.candidates import CLIP, mean, sequences_of, token_losses
from ..logits.peers import Peer, module

IGNORED = -100  # the target of a token that does not count, for peers that take no mask
WITHOUT_ENTROPY, CROSS_ENTROPY = "entropy", "policy gradient, entropy"  # what is left out


def trl_head() -> Callable:
    chunked = importlib.import_module("trl.kernels").ChunkedLogProbFunction

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor, *tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        outputs = chunked.apply(hidden, weight, None, targets, 1.0, 32768, None, 1.0, ("entropy",))
        return mean(token_losses(*outputs[:2], *tokens), mask)

    return loss


def liger_head() -> Callable:
    """CuTe where it knows the GPU and its compiler is there, else Liger's own torch code: `loss.ran` says which."""
    from_liger = importlib.import_module("liger_kernel.ops.fused_linear_scaled_cross_entropy")

    def statistics(*arguments) -> tuple[Tensor, Tensor]:
        try:
            return from_liger.LigerFusedLinearScaledCrossEntropyFunction.apply(*arguments, IGNORED, 1, True)
        except ImportError:
            return from_liger._FusedLinearPPOFallbackFunction.apply(*arguments, IGNORED, True)

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor, *tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        scored = targets if mask is None else targets.masked_fill(~mask, IGNORED)
        minus_logprobs, entropy = statistics(hidden, weight, scored, 1.0)
        loss.ran = "CuTe" if "SM90" in minus_logprobs.grad_fn.name() else "its torch fallback"
        return mean(token_losses(-minus_logprobs, entropy.float(), *tokens), mask)

    return loss


def verl_head() -> Callable:
    """Its Triton kernels."""
    fused = module("verl.utils.kernel.linear_cross_entropy").linear_cross_entropy

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor, *tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        return mean(token_losses(*fused(hidden, weight, targets, 1.0), *tokens), mask)

    return loss


def verl_torch_head() -> Callable:
    """Its functions of logits in float32, which loop over the first dimension and so get sequences."""
    verl = module("verl.utils.torch_functional")

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor, *tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        sequences = sequences_of(len(targets))
        logits = (hidden @ weight.t()).float().view(sequences, -1, len(weight))
        logprobs = verl.logprobs_from_logits(logits, targets.view(sequences, -1), inplace_backward=False)
        return mean(token_losses(logprobs.flatten(), verl.entropy_from_logits(logits).flatten(), *tokens), mask)

    return loss


def liger_grpo_head() -> Callable:
    """One advantage for each sequence; sequence by sequence."""
    grpo_loss = importlib.import_module("liger_kernel.chunked_loss").LigerFusedLinearGRPOLoss

    @functools.cache
    def settings(compiled: bool):
        return grpo_loss(
            beta=0.0, compiled=compiled, use_ref_model=False, epsilon_low=CLIP, epsilon_high=CLIP, loss_type="bnpo"
        )

    def loss(
        hidden: Tensor, weight: Tensor, targets: Tensor, advantages: Tensor, mode: Tensor, old_logprobs: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        def sequences(x: Tensor) -> Tensor:
            return x.view(sequences_of(len(targets)), -1, *x.shape[1:])

        valid = torch.ones_like(old_logprobs) if mask is None else mask.float()
        value, _ = settings(hidden.is_cuda)(
            sequences(hidden), weight, sequences(targets), sequences(valid), sequences(advantages)[:, 0].contiguous(),
            old_per_token_logps=sequences(old_logprobs),
        )  # fmt: skip
        return value

    return loss


def quack_head() -> Callable:
    """Untuned where it has a choice: its search takes minutes."""
    chunked = importlib.import_module("quack.linear_cross_entropy").chunked_linear_cross_entropy
    return cross_entropy(lambda *inputs: chunked(*inputs, ignore_index=IGNORED, tuned=False))


def torch_head() -> Callable:
    """torch's own, by chunks of the size that quack takes: on a CPU its own choice takes ten times as long."""
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=4096)
    fused = torch.nn.functional.linear_cross_entropy
    return cross_entropy(lambda *inputs: fused(*inputs, ignore_index=IGNORED, options=options))


def cross_entropy(mean_of: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable:
    def loss(hidden: Tensor, weight: Tensor, targets: Tensor, *_: Tensor, mask: Tensor | None = None) -> Tensor:
        return mean_of(hidden, weight, targets if mask is None else targets.masked_fill(~mask, IGNORED))

    return loss


LINEAR_PEERS = [
    Peer("trl", "trl", "linear", functools.cache(trl_head)),
    Peer("liger", "liger-kernel", "linear", functools.cache(liger_head)),
    Peer("verl", "verl", "linear", functools.cache(verl_head)),
    Peer("verl-torch", "verl", "linear", functools.cache(verl_torch_head)),
    Peer("liger-grpo", "liger-kernel", "linear", functools.cache(liger_grpo_head), WITHOUT_ENTROPY),
    Peer("quack", "quack-kernels", "linear", functools.cache(quack_head), CROSS_ENTROPY),
    Peer("torch-chunked", "torch", "linear", functools.cache(torch_head), CROSS_ENTROPY),
]
