"""The LM head of bad input: each error names the argument and what would be right."""

import pytest
import torch

from policy_split import linear_dual_mode_loss, linear_logprobs_and_entropy, linear_token_loss

H, W, T = torch.zeros(4, 8), torch.zeros(11, 8), torch.zeros(4, dtype=torch.int64)
WRONG = {
    "hidden_type": ({"hidden": [1.0]}, TypeError, "hidden must be a tensor"),
    "hidden_integers": ({"hidden": torch.zeros(4, 8, dtype=torch.int64)}, TypeError, "hidden must be one of"),
    "hidden_scalar": ({"hidden": torch.zeros(())}, ValueError, r"\(\.\.\., D\)"),
    "dim": ({"weight": torch.zeros(11, 7)}, ValueError, r"\(4, 8\) and \(11, 7\)"),
    "weight_vector": ({"weight": torch.zeros(8)}, ValueError, r"weight \(V, D\)"),
    "weight_empty": ({"weight": torch.zeros(0, 8)}, ValueError, "V, D >= 1"),
    "bias_shape": ({"bias": torch.zeros(8)}, ValueError, r"bias must have shape \(11,\)"),
    "device": ({"weight": W.to("meta")}, ValueError, "expected the same device"),
    "targets_shape": ({"targets": T[:3]}, ValueError, "targets has shape"),
    "targets_dtype": ({"targets": T.float()}, TypeError, "integer token ids"),
    "target": ({"targets": torch.tensor([0, 1, 11, 2])}, IndexError, "outside the vocabulary of 11"),
    "mask": ({"mask": torch.ones(5)}, ValueError, "mask has shape"),
    "temperature": ({"temperature": 0.0}, ValueError, "temperature must be finite and > 0"),
    "softcap": ({"softcap": -1.0}, ValueError, "softcap must be finite and > 0"),
    "logit_scale": ({"logit_scale": 0.0}, ValueError, "logit_scale must be finite and > 0"),
    "keep_mask": ({"keep_mask": torch.ones(4, 12, dtype=torch.bool)}, ValueError, "keep_mask has shape"),
    "logits_dtype": ({"logits_dtype": torch.float16}, ValueError, "logits_dtype must be one of"),
    "chunk_bytes": ({"chunk_bytes": 0}, ValueError, "chunk_bytes must be a positive integer"),
    "chunk_bytes_type": ({"chunk_bytes": 1.5}, ValueError, "chunk_bytes must be a positive integer"),
    "process_group": ({"process_group": "tp"}, TypeError, "process_group must be"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_bad_input(name):
    options, error, says = WRONG[name]
    arguments = {"hidden": H, "weight": W, "targets": T} | options
    with pytest.raises(error, match=says):
        linear_logprobs_and_entropy(**arguments)
    with pytest.raises(error, match=says):
        linear_token_loss(**arguments, loss_fn=lambda l, e, i: l)
    with pytest.raises(error, match=says):
        linear_dual_mode_loss(**arguments, advantages=torch.zeros(4), mode=T)


def test_bad_tokens_of_the_dual_mode_loss():
    for options, error, says in [
        ({"advantages": torch.zeros(3)}, ValueError, "advantages has shape"),
        ({"mode": T + 2}, ValueError, "mode holds 2"),
        ({"weights": torch.ones(4), "loss_type": "grpo"}, ValueError, "two answers to one question"),
        ({"surrogate": "none"}, ValueError, "surrogate must be one of"),
    ]:
        arguments = {"advantages": torch.zeros(4), "mode": T} | options
        with pytest.raises(error, match=says):
            linear_dual_mode_loss(H, W, T, **arguments)
