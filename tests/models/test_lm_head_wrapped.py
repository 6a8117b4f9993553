"""patch_lm_head among others who change a model: wrapped forwards, copies, saved models, hooks."""

import copy
import pickle

import pytest
import torch
import transformers
from lm_batches import KEPT, batch, fused, gradients, unfused
from lm_models import V, made

from policy_split.models.lm_head import is_patched, patch_lm_head, unpatch_lm_head


def test_patching_twice_and_unpatching():
    model = made()
    names = set(vars(model))
    assert not is_patched(model)
    assert unpatch_lm_head(model) is model  # nothing to do
    for _ in range(2):
        assert patch_lm_head(patch_lm_head(model)) is model
        assert is_patched(model)
        assert isinstance(model, transformers.LlamaForCausalLM)
        fused(model)
        assert unpatch_lm_head(model) is model
        assert type(model) is transformers.LlamaForCausalLM
        assert set(vars(model)) == names
        assert not is_patched(model)


def test_a_forward_that_was_wrapped_before_or_after():
    """As accelerate does, before and after patching: unpatched in between, it passes calls on."""

    def wrap(model, calls):
        inner = model.forward

        def forward(*args, **kwargs):
            calls.append(1)
            return inner(*args, **kwargs)

        model.forward = forward
        return forward

    model, (ids, _), before, after = made(), batch(), [], []
    expected = model(input_ids=ids).logits
    first = wrap(model, before)
    patch_lm_head(model)
    loss, _ = fused(model)
    assert len(before) == 1
    second = wrap(model, after)
    torch.testing.assert_close(fused(model)[0], loss)
    assert (len(before), len(after)) == (2, 1)
    unpatch_lm_head(model)
    assert torch.equal(model(input_ids=ids).logits, expected)
    assert (len(before), len(after)) == (3, 2)
    with pytest.raises(RuntimeError, match="not patched any more"):
        fused(model)
    patch_lm_head(model)
    torch.testing.assert_close(fused(model)[0], loss)
    assert vars(model)["forward"] is second
    model.forward = first  # nothing on top any more
    del model.forward
    unpatch_lm_head(model)
    assert vars(model)["forward"] is first


def test_accelerates_autocast_can_be_put_on_and_taken_off():
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    model = patch_lm_head(made())
    loss, _ = fused(model)
    AcceleratorState._reset_state()
    try:
        accelerator = Accelerator(cpu=True, mixed_precision="bf16")
        prepared = accelerator.prepare_model(model)
        rounded, result = fused(prepared)
        assert result.logprobs.dtype == torch.float32
        assert 0 < abs(rounded - loss) < 0.05 * abs(loss)
        twin = copy.deepcopy(model)
        with torch.no_grad():
            model.lm_head.weight.mul_(0.5)
        assert torch.equal(fused(twin)[0], rounded)
        with torch.no_grad():
            model.lm_head.weight.mul_(2.0)
        assert torch.equal(fused(accelerator.unwrap_model(prepared, keep_fp32_wrapper=False))[0], loss)
    finally:
        AcceleratorState._reset_state()


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("kind", ["llama", "qwen3 tied"])
def test_a_copy_uses_its_own_weights(duplicate, kind):
    model = patch_lm_head(made(kind))
    loss, _ = fused(model)
    twin = duplicate(model)
    assert is_patched(twin)
    assert type(twin) is type(model)
    torch.testing.assert_close(fused(twin)[0], loss)
    with torch.no_grad():
        twin.lm_head.weight.mul_(0.5)
    assert fused(twin)[0] != loss
    assert torch.equal(fused(model)[0], loss)
    gradients(twin, fused(twin)[0])
    assert model.lm_head.weight.grad is None
    assert type(unpatch_lm_head(twin)) is type(made(kind))
    assert is_patched(model)


def test_state_and_saved_model_are_as_before(tmp_path):
    model = made()
    before = list(model.state_dict())
    patch_lm_head(model)
    fused(model)
    assert list(model.state_dict()) == before
    assert repr(model) == repr(made())
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is transformers.LlamaForCausalLM
    assert loaded.config.architectures == ["LlamaForCausalLM"]
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_head_that_is_replaced_after_patching():
    model = patch_lm_head(made())
    model.resize_token_embeddings(V + 3, mean_resizing=False)
    loss, _ = unfused(model)
    torch.testing.assert_close(fused(model)[0], loss, rtol=1e-5, atol=1e-6)


def test_hooks_of_the_head_run():
    model, seen = patch_lm_head(made()), []
    model.lm_head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(type(output).__name__))
    fused(model)
    assert seen == [(3, KEPT, 16), "DualModeLossOutput"]
