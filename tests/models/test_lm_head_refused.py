"""patch_lm_head and what it cannot serve: heads and models that do something else are refused, models left intact."""

import pytest
import torch
import transformers
from lm_batches import KEPT, assert_fused_equals_unfused, batch, fused
from lm_models import V, made
from torch import nn

from policy_split.models.lm_head import UnknownHeadError, is_patched, patch_lm_head, unpatch_lm_head


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
