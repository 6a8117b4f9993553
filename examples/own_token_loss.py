"""A loss of one's own from hidden states: any function of a token's log-prob and entropy, without N x V logits.

python examples/own_token_loss.py
"""

import torch

from policy_split import linear_token_loss, patch_lm_head
from policy_split.countdown.model import countdown_model, countdown_tokenizer

tokenizer = countdown_tokenizer()
model = patch_lm_head(countdown_model(tokenizer, seed=0))  # its forward now takes head_fn
generator = torch.Generator().manual_seed(0)
input_ids = torch.randint(4, len(tokenizer), (8, 12), generator=generator)
targets, length = input_ids[:, 1:], input_ids.shape[1] - 1
advantages = torch.randn(8, length, generator=generator)
old_logprobs = torch.full((8, length), -4.6)


def asymmetric(logprobs: torch.Tensor, entropy: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Clipped policy gradient, clipped later for good tokens; more entropy for bad ones."""
    advantage = advantages.flatten()[index]
    ratio = (logprobs - old_logprobs.flatten()[index]).exp()
    clipped = torch.where(advantage > 0, ratio.clamp(max=1.4), ratio.clamp(min=0.8))
    return -torch.minimum(ratio * advantage, clipped * advantage) - 0.01 * (advantage < 0) * entropy


def head_fn(hidden: torch.Tensor, weight: torch.Tensor, **head):
    return linear_token_loss(hidden[:, :-1], weight, targets, asymmetric, **head)


out = model(input_ids=input_ids, head_fn=head_fn)
out.loss.backward()  # gradients of the whole model, the LM head's among them
print(f"loss {out.loss.item():+.4f}, entropy {out.result.entropy.mean().item():.3f} nats")
print(f"gradient of the LM head: {model.get_output_embeddings().weight.grad.norm().item():.4f}")
