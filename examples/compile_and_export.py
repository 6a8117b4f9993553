"""The loss as one graph: inside torch.compile(fullgraph=True), and exported by torch.export.

python examples/compile_and_export.py
"""

import torch

from policy_split import DualModeLoss
from policy_split.countdown.model import countdown_model, countdown_tokenizer

tokenizer = countdown_tokenizer()
model = countdown_model(tokenizer, seed=0)
loss_fn = DualModeLoss(loss_type="dapo", entropy_coef=(0.0, 0.01))
generator = torch.Generator().manual_seed(0)
input_ids = torch.randint(4, len(tokenizer), (4, 10), generator=generator)
mode = torch.tensor([0, 1, 0, 1])[:, None].expand(4, 9)
advantages = torch.randn(4, 9, generator=generator)


def step(input_ids: torch.Tensor, advantages: torch.Tensor, mode: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=input_ids, use_cache=False).logits[:, :-1]
    return loss_fn(logits, input_ids[:, 1:], advantages=advantages, mode=mode).loss


def gradient(loss: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, model.get_output_embeddings().weight)[0]


compiled = torch.compile(step, fullgraph=True)  # model and loss in one graph, no break
eager, fast = step(input_ids, advantages, mode), compiled(input_ids, advantages, mode)
difference = (gradient(eager) - gradient(fast)).abs().max()
print(f"loss {eager.item():+.6f}, compiled {fast.item():+.6f}, largest difference of gradients {difference.item():.1e}")


logits, targets = model(input_ids=input_ids).logits[:, :-1].detach(), input_ids[:, 1:]
tokens = {"advantages": advantages, "mode": mode}
batch = {0: torch.export.Dim("batch", min=2, max=1024)}
shapes = {"logits": batch, "targets": batch, "advantages": batch, "mode": batch}
program = torch.export.export(loss_fn, (logits, targets), tokens, dynamic_shapes=shapes)
fewer = {name: x[:3] for name, x in tokens.items()}
exported, expected = (f(logits[:3], targets[:3], **fewer) for f in (program.module(), loss_fn))
print("exported, another batch size:", all(map(torch.equal, exported, expected)))
