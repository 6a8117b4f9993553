"""The same batch through a model with its LM head patched and through its logits."""

import functools

import torch
from lm_models import V

from policy_split import dual_mode_loss, linear_dual_mode_loss
from policy_split.models.lm_head import patch_lm_head

KEPT = 5


def batch(kept=KEPT):
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, V, (3, 9), generator=generator)
    tokens = {"targets": ids[:, -kept:], "mode": torch.tensor([0, 1, 0])[:, None].expand(-1, kept)}
    tokens["advantages"], old, ref = torch.randn(3, 3, kept, generator=generator)
    tokens |= {"old_logprobs": old.sigmoid() - 4, "ref_logprobs": ref.sigmoid() - 4}
    tokens["mask"] = torch.arange(kept) < torch.tensor([kept, 2, 4])[:, None]
    return ids, tokens | {"entropy_coef": (0.1, 0.3), "kl_coef": (0.2, 0.2), "temperature": 0.8}


def unfused(model, aux=0.0, kept=KEPT, **more):
    ids, tokens = batch(kept)
    out = model(input_ids=ids, logits_to_keep=kept, **more)
    loss = dual_mode_loss(out.logits, **tokens)
    return loss.loss + (aux * out.aux_loss if aux else 0.0), loss


def fused(model, kept=KEPT, head_fn=linear_dual_mode_loss, **more):
    ids, tokens = batch(kept)
    out = model(input_ids=ids, logits_to_keep=kept, head_fn=functools.partial(head_fn, **tokens), **more)
    return out.loss, out.result


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        atol = 1e-5 * value.abs().max().item()
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def assert_fused_equals_unfused(model, aux=0.0):
    loss, out = unfused(model, aux)
    expected = gradients(model, loss)
    found, result = fused(patch_lm_head(model))
    torch.testing.assert_close(found, loss, rtol=1e-5, atol=1e-6)
    for name in ("logprobs", "entropy", "kl"):
        torch.testing.assert_close(getattr(result, name), getattr(out, name), rtol=1e-4, atol=1e-5)
    assert torch.equal(result.clipped, out.clipped)
    assert_same(gradients(model, found), expected)
    assert any("lm_head" in name or "emb" in name or "wte" in name for name in expected)
