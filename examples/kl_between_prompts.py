"""How far a system prompt moves a model: exact KL, token by token, between its distributions under two prompts.

python examples/kl_between_prompts.py [MODEL "SYSTEM PROMPT" "QUESTION" "RESPONSE"]
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from policy_split import mode_divergence
from policy_split.countdown.model import countdown_model, countdown_tokenizer
from policy_split.modes import encode_prompt

if len(sys.argv) > 1:
    name, system, question, response = sys.argv[1:]
    tokenizer, model = AutoTokenizer.from_pretrained(name), AutoModelForCausalLM.from_pretrained(name)
else:  # a small model with random weights
    system, question, response = "explore", "3 4 5 = 23", "3 * 4 + 5"
    tokenizer = countdown_tokenizer()
    model = countdown_model(tokenizer, seed=0)
response_ids = tokenizer.encode(response, add_special_tokens=False)


@torch.no_grad()
def logits(system_prompt: str | None) -> torch.Tensor:
    """(T, V): what predicts each token of the response."""
    ids = encode_prompt(tokenizer, question, system_prompt) + response_ids
    return model(torch.tensor([ids])).logits[0, -len(response_ids) - 1 : -1]


out = mode_divergence(logits(None), logits(system))
print("token            KL(plain || prompted)  KL(prompted || plain)  entropy plain  prompted   (nats)")
for token, kl_ab, kl_ba, entropy_a, entropy_b in zip(response_ids, *(x.tolist() for x in out), strict=True):
    print(f"{tokenizer.decode([token])!r:16} {kl_ab:21.5f}  {kl_ba:21.5f}  {entropy_a:13.3f}  {entropy_b:8.3f}")
