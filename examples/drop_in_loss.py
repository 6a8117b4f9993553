"""Drop-in loss: one policy-gradient step of two modes in a plain loop, the logits read once.

python examples/drop_in_loss.py
"""

import torch

from policy_split import dual_mode_advantages, dual_mode_loss, logprobs_and_entropy
from policy_split.countdown.model import countdown_model, countdown_tokenizer

P, N, LENGTH = 2, 4, 6  # questions, responses of each mode, tokens
tokenizer = countdown_tokenizer()
model = countdown_model(tokenizer, seed=0)  # any model that returns logits
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

# In the order of the four blocks: prompt/response normal/normal, high/high, normal/high, high/normal. Here the prompts
# and responses are random token ids; yours come from your sampler.
generator = torch.Generator().manual_seed(0)
prompts = torch.randint(4, len(tokenizer), (2, 1, 5), generator=generator).expand(2, P * N, 5)  # one for each mode
responses = torch.randint(4, len(tokenizer), (2, P * N, LENGTH), generator=generator)
blocks = ((0, 0), (1, 1), (0, 1), (1, 0))
input_ids = torch.cat([torch.cat((prompts[p], responses[r]), 1) for p, r in blocks])  # (4*P*N, 11)
targets = input_ids[:, -LENGTH:]
mode = torch.tensor([p for p, _ in blocks]).repeat_interleave(P * N)[:, None].expand_as(targets)
mask = torch.ones_like(targets)
rewards = torch.rand(2, P * N, generator=generator)
rewards = torch.cat([rewards[r] for _, r in blocks])


def logits() -> torch.Tensor:
    return model(input_ids=input_ids).logits[:, -LENGTH - 1 : -1]


with torch.no_grad():
    old_logprobs, _ = logprobs_and_entropy(logits(), targets)
advantages, _ = dual_mode_advantages(
    rewards, old_logprobs, mask, num_prompts=P, num_generations=N, clamp="code", eta=0.3
)
for update in range(3):
    out = dual_mode_loss(
        logits(), targets, advantages=advantages, mode=mode, old_logprobs=old_logprobs, mask=mask, loss_type="dapo"
    )
    out.loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"update {update}: loss {out.loss.item():+.4f}, entropy {out.entropy.mean().item():.3f} nats")
