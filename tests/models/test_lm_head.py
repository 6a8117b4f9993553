"""patch_lm_head: models of every kind give the loss and gradients of their logits, and stay what they were."""

import copy
import functools
import importlib.util
import inspect
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import tiny
import torch
import transformers
from lm_models import KINDS, V, made
from torch import nn

from policy_split import dual_mode_loss, linear_dual_mode_loss, linear_logprobs_and_entropy, linear_token_loss
from policy_split.models.lm_head import UnknownHeadError, is_patched, patch_lm_head, unpatch_lm_head
from policy_split.models.policy import enable_checkpointing

KEPT = 5
needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")


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


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_the_logits(kind):
    assert_fused_equals_unfused(made(kind), aux=0.1 if kind == "mixtral router" else 0.0)


def test_router_loss_is_added_as_with_labels():
    model = made("mixtral router")
    ids, tokens = batch()
    out = patch_lm_head(model)(
        input_ids=ids, logits_to_keep=KEPT, head_fn=functools.partial(linear_dual_mode_loss, **tokens)
    )
    torch.testing.assert_close(out.loss, out.result.loss + 0.1 * out.aux_loss)
    assert out.aux_loss > 0.5
    assert fused(patch_lm_head(made("mixtral")))[1] is not None


def test_bias_of_the_head():
    model = made()
    model.lm_head = nn.Linear(16, V)  # with a bias
    assert_fused_equals_unfused(model)
    assert model.lm_head.bias.grad.abs().sum() > 0


@pytest.mark.parametrize("kept", [1, 8])
def test_logits_to_keep(kept):
    model = made()
    loss, _ = unfused(model, kept=kept)
    found, result = fused(patch_lm_head(model), kept=kept)
    torch.testing.assert_close(found, loss, rtol=1e-5, atol=1e-6)
    assert result.logprobs.shape == (3, kept)


def test_other_functions_and_results():
    """Whatever head_fn returns is the result; a loss is taken from where there is one."""
    model, (ids, tokens) = patch_lm_head(made()), batch()
    scores = functools.partial(linear_logprobs_and_entropy, targets=tokens["targets"])
    out = model(input_ids=ids, logits_to_keep=KEPT, head_fn=scores, output_hidden_states=True, use_cache=True)
    assert out.loss is None
    assert out.result.logprobs.shape == (3, KEPT)
    assert len(out.hidden_states) == 3
    (cache,) = (x for x in out.values() if hasattr(x, "get_seq_length"))  # by transformers' own name of it
    assert cache.get_seq_length() == 9
    token_loss = functools.partial(linear_token_loss, targets=tokens["targets"], loss_fn=lambda l, h, i: -l)
    nll = model(input_ids=ids, logits_to_keep=KEPT, head_fn=token_loss).loss
    torch.testing.assert_close(nll, -out.result.logprobs.mean())
    assert model(input_ids=ids, logits_to_keep=KEPT, head_fn=lambda hidden, weight, **_: None).result is None


def test_gradient_checkpointing():
    model = made()
    expected = gradients(model, unfused(model)[0])
    enable_checkpointing(model)
    model.train()
    assert_same(gradients(model, fused(patch_lm_head(model))[0]), expected)


def test_bfloat16_autocast():
    model = made()
    with torch.autocast("cpu", torch.bfloat16):
        expected = unfused(model)[0]
        expected_gradients = gradients(model, expected)
        found, result = fused(patch_lm_head(model))
    assert result.logprobs.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
    for name, gradient in gradients(model, found).items():
        assert gradient.dtype == torch.float32
        assert (gradient - expected_gradients[name]).norm() < 0.05 * expected_gradients[name].norm(), name


def test_no_grad():
    model = made()
    with torch.no_grad():
        expected = unfused(model)[0]
        found, _ = fused(patch_lm_head(model))
    assert not found.requires_grad
    torch.testing.assert_close(found, expected)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo's own, of a layer's input
def test_compiled_models():
    """As a whole, when a call with head_fn is not compiled, and layer by layer, when the layers stay so."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model = made()
    loss, _ = unfused(model)
    expected = gradients(model, loss)
    compiled = torch.compile(patch_lm_head(model), backend=backend)
    for _ in range(2):
        assert_same(gradients(model, fused(compiled)[0]), expected)
    assert not graphs
    torch.testing.assert_close(compiled(input_ids=batch()[0]).logits, model(input_ids=batch()[0]).logits)
    graphs.clear()
    for layer in model.model.layers:
        layer.mlp.compile(backend=backend)
    for run in (model, compiled):
        assert_same(gradients(model, fused(run)[0]), expected)
        assert len(graphs) in (1, 2)


def test_generate_and_plain_calls_stay_what_they_were():
    model = made()
    ids, _ = batch()
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    logits, tokens = model(input_ids=ids).logits, model.generate(ids, **settings)
    before = inspect.signature(model.forward)
    patch_lm_head(model)
    for _ in range(2):
        assert torch.equal(model(input_ids=ids).logits, logits)
        assert torch.equal(model.generate(ids, **settings), tokens)
        fused(model)
    labelled = model(input_ids=ids, labels=ids).loss
    assert labelled > 0
    after = inspect.signature(model.forward)
    assert [name for name in after.parameters if name != "head_fn"] == list(before.parameters)
    assert "head_fn" in after.parameters


class Changed(transformers.LlamaForCausalLM):
    """Changes its logits in a way of its own."""

    change = None

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = type(self).change(out.logits)
        return out


@pytest.mark.parametrize(
    "change",
    [
        lambda z: z / 2,
        lambda z: z + 1,
        lambda z: z - z.logsumexp(-1, keepdim=True),
        lambda z: 30 * torch.tanh(z / 30),  # Gemma's, but the config does not say so
        lambda z: z.masked_fill(torch.arange(V) == V - 1, -torch.inf),
        lambda z: z[..., : V - 1],
        lambda z: z * torch.ones(3, KEPT, 1),  # of the token
        lambda z: z.view(3 * KEPT, V),
    ],
)
def test_logits_that_are_changed_otherwise_are_refused(change, monkeypatch):
    monkeypatch.setattr(Changed, "change", staticmethod(change))
    model = patch_lm_head(Changed(made().config))
    for _ in range(2):
        with pytest.raises(
            UnknownHeadError, match="Changed changes its logits after lm_head in a way that is not known"
        ):
            fused(model)
    unpatch_lm_head(model)
    assert type(model) is Changed


def test_a_factor_comes_before_the_softcap(monkeypatch):
    monkeypatch.setattr(Changed, "change", staticmethod(lambda z: 3 * torch.tanh(0.5 * z / 3)))
    config = made().config
    config.final_logit_softcapping, config.output_multiplier = 3.0, 0.5
    assert_fused_equals_unfused(Changed(config))


def test_logits_are_checked_once(monkeypatch):
    monkeypatch.setattr(Changed, "change", staticmethod(lambda z: z))
    model = patch_lm_head(Changed(made().config))
    fused(model)
    monkeypatch.setattr(Changed, "change", staticmethod(lambda z: z.new_full(z.shape, torch.nan)))
    fused(model)


def test_a_head_that_is_called_twice_is_refused():
    class Twice(transformers.LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            super().forward(*args, **kwargs)
            return super().forward(*args, **kwargs)

    with pytest.raises(UnknownHeadError, match="called its LM head 2 times in one forward"):
        fused(patch_lm_head(Twice(made().config)))


def test_models_may_ask_their_head_for_its_weight():
    class Asks(transformers.LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            assert (self.lm_head.weight.dtype, self.lm_head.out_features) == (torch.float32, V)
            return super().forward(*args, **kwargs)

    assert_fused_equals_unfused(Asks(made().config))


def test_errors_leave_the_model_intact():
    model, (ids, _) = made(), batch()
    before, head = model(input_ids=ids).logits, model.lm_head

    def fail(hidden, weight, **options):
        raise LookupError("of head_fn")

    patch_lm_head(model)
    for _ in range(2):
        with pytest.raises(LookupError, match="of head_fn"):
            model(input_ids=ids, head_fn=fail)
        assert model.lm_head is head
        assert "forward" not in vars(head)
        assert torch.equal(model(input_ids=ids).logits, before)
        fused(model)
    with pytest.raises(ValueError, match="labels and head_fn are two losses"):
        model(input_ids=ids, labels=ids, head_fn=fail)
    with pytest.raises(ValueError, match="return_dict=True"):
        model(input_ids=ids, return_dict=False, head_fn=fail)


class OtherHead(nn.Linear):
    def forward(self, hidden):
        return super().forward(nn.functional.normalize(hidden, dim=-1))


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (lambda: OtherHead(16, V), r"nn.Linear or .* got OtherHead with a weight of shape \(61, 16\)"),
        (lambda: nn.Sequential(nn.Linear(16, V)), "got Sequential"),
        (lambda: None, "got NoneType"),
    ],
)
def test_heads_that_are_not_linear_are_refused(head, expected):
    model = made()
    model.lm_head = head()
    with pytest.raises(TypeError, match=expected):
        patch_lm_head(model)
    assert not is_patched(model)


def test_quantised_weights_are_refused():
    model = made()
    model.lm_head.weight = nn.Parameter(torch.zeros(V, 16, dtype=torch.int8), requires_grad=False)
    with pytest.raises(TypeError, match=r"must be of floating point, got torch\.int8"):
        patch_lm_head(model)


def test_wrappers_and_base_models_are_refused():
    with pytest.raises(TypeError, match=r"Sequential has no get_output_embeddings\(\)"):
        patch_lm_head(nn.Sequential(made()))
    with pytest.raises(TypeError, match="got NoneType"):
        patch_lm_head(made().model)


def test_an_offloaded_weight_is_an_error():
    model = patch_lm_head(made())
    model.lm_head.to("meta")
    with pytest.raises(RuntimeError, match="offloaded"):
        fused(model)


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


def test_ddp_and_fsdp2_train_as_one_process_does():
    script = Path(tiny.__file__).with_name("two_processes_head.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", script]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=200, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("done") == 2
