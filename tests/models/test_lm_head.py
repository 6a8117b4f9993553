"""patch_lm_head: models of every kind give the loss and gradients of their logits."""

import functools
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from lm_batches import KEPT, assert_fused_equals_unfused, assert_same, batch, fused, gradients, unfused
from lm_models import KINDS, V, made
from torch import nn

from policy_split import linear_dual_mode_loss, linear_logprobs_and_entropy, linear_token_loss
from policy_split.models.lm_head import patch_lm_head
from policy_split.models.policy import enable_checkpointing


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


def test_ddp_and_fsdp2_train_as_one_process_does():
    script = Path(tiny.__file__).with_name("two_processes_head.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", script]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=200, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("done") == 2
