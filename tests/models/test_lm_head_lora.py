"""patch_lm_head with PEFT: LoRA on the head, several adapters, a copy of the head that trains."""

import importlib.util
import warnings

import pytest
import torch
from lm_batches import assert_fused_equals_unfused, batch, fused, unfused
from lm_models import V, made

from policy_split.models.lm_head import is_patched, patch_lm_head

needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")


def lora(model, **options):
    import peft

    settings = {"r": 3, "lora_alpha": 7, "target_modules": ["q_proj", "lm_head"], "init_lora_weights": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft's use of what transformers has renamed
        return peft.get_peft_model(model, peft.LoraConfig(**settings | options))


@needs_peft
@pytest.mark.parametrize("first", ["patched first", "wrapped first"])
def test_lora_on_the_head(first):
    torch.manual_seed(0)
    model = lora(patch_lm_head(made()) if first == "patched first" else made())
    assert_fused_equals_unfused(model)
    assert is_patched(model)
    assert is_patched(model.get_base_model())
    for part in ("lora_A", "lora_B"):
        assert getattr(model.base_model.model.lm_head, part)["default"].weight.grad.abs().sum() > 0
    with model.disable_adapter():
        torch.testing.assert_close(fused(model)[0], unfused(model)[0], rtol=1e-5, atol=1e-6)
        bare = fused(model)[0]
    assert fused(model)[0] != bare
    model.merge_adapter()
    torch.testing.assert_close(fused(model)[0], unfused(model)[0], rtol=1e-5, atol=1e-6)
    with model.disable_adapter():
        torch.testing.assert_close(fused(model)[0], bare, rtol=1e-4, atol=1e-5)


@needs_peft
def test_lora_with_several_adapters_dropout_and_bias():
    import peft

    torch.manual_seed(0)
    model = lora(made(), lora_dropout=0.5, target_modules=["lm_head"])
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False))
    model.base_model.set_adapter(["default", "second"])
    assert_fused_equals_unfused(model.eval())
    model.train()
    losses = []
    for run in (unfused, fused):
        torch.manual_seed(5)
        losses.append(run(model)[0])
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)
    with pytest.warns(peft.utils.warning.PeftWarning, match="has no bias"):
        biased = lora(made(), lora_bias=True)
    with torch.no_grad():
        biased.base_model.model.lm_head.lora_B["default"].bias.normal_()
    assert_fused_equals_unfused(biased)


@needs_peft
def test_lora_of_a_small_update_is_not_lost_in_bfloat16():
    torch.manual_seed(0)
    model = lora(made().bfloat16(), target_modules=["lm_head"])
    head = model.base_model.model.lm_head
    with torch.no_grad():
        head.base_layer.weight.copy_(torch.ones(V, 16))  # next to 1, bfloat16 has steps of 0.0078
        head.lora_B["default"].weight.copy_(torch.linspace(-1, 1, V)[:, None].expand(-1, 3) * 1e-3)
        head.lora_A["default"].weight.fill_(1.0)
    ids, _ = batch()
    out = patch_lm_head(model)(input_ids=ids, head_fn=lambda hidden, weight, **_: (hidden.float(), weight.float()))
    hidden, weight = out.result
    low = hidden[..., :16].sum(-1, keepdim=True) * 7 / 3 * 3e-3 * torch.linspace(-1, 1, V)
    found = hidden @ weight.T - hidden[..., :16].sum(-1, keepdim=True)
    torch.testing.assert_close(found, low, rtol=0.03, atol=1e-3)


@needs_peft
@pytest.mark.parametrize("patch_first", [False, True])
def test_lora_of_another_kind_is_refused(patch_first):
    model = made()
    if patch_first:
        model = lora(patch_lm_head(model), use_dora=True)
        with pytest.raises(TypeError, match="adapter 'default' is of DoraLinearVariant; only plain LoRA"):
            fused(model)
    else:
        with pytest.raises(TypeError, match="adapter 'default' is of DoraLinearVariant; only plain LoRA"):
            patch_lm_head(lora(model, use_dora=True))


@needs_peft
def test_a_copy_of_the_head_that_trains_beside_lora():
    model = lora(made(), target_modules=["q_proj"], modules_to_save=["lm_head"])
    with torch.no_grad():
        model.base_model.model.lm_head.modules_to_save["default"].weight.mul_(0.7)
    assert_fused_equals_unfused(model)
    assert model.base_model.model.lm_head.modules_to_save["default"].weight.grad is not None
    with model.disable_adapter():
        torch.testing.assert_close(fused(model)[0], unfused(model)[0], rtol=1e-5, atol=1e-6)
