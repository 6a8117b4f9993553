"""Our LM head in verl's actor: VERL_USE_EXTERNAL_MODULES=policy_split.integrations.verl.kernels puts it there.

With `actor_rollout_ref.model.use_fused_kernels=True` and the backend `torch`, which then is ours. Not run on GPUs yet.
"""

from typing import Any

from torch import Tensor
from verl.utils.experimental.torch_functional import FusedLinearForPPO

from policy_split_kernels.linear import linear_logprobs_and_entropy


def fused_linear(
    self: Any,
    hidden_states: Tensor,  # (..., D)
    vocab_weights: Tensor,  # (V, D)
    input_ids: Tensor,  # (...)
    temperature: float | Tensor = 1.0,
) -> tuple[Tensor, Tensor]:
    """(log-probs, entropies) (...), nats, both differentiable, in place of `FusedLinearForPPO.forward`."""
    logprobs, entropy = linear_logprobs_and_entropy(
        hidden_states, vocab_weights, input_ids.long(), temperature=temperature
    )
    return logprobs, entropy


def use_fused_kernels() -> None:
    """Let every model that verl has patched for its fused kernels score by ours, in this process."""
    FusedLinearForPPO.forward = fused_linear


use_fused_kernels()
