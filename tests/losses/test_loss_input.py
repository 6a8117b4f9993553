"""dual_mode_loss of bad input: each error names the argument and what would be right."""

import pytest
import torch

from policy_split import dual_mode_loss

BAD = [
    ({"advantages": torch.ones(3)}, ValueError, r"advantages has shape \(3,\); expected \(2,\)"),
    ({"advantages": 1.0}, TypeError, "advantages must be a tensor"),
    ({"advantages": torch.ones(2, dtype=torch.complex64)}, TypeError, "advantages must hold real numbers"),
    ({"old_logprobs": torch.ones(2, 1)}, ValueError, r"old_logprobs has shape \(2, 1\)"),
    ({"weights": torch.ones(1)}, ValueError, r"weights has shape \(1,\)"),
    ({"mask": torch.ones(4)}, ValueError, r"mask has shape \(4,\)"),
    ({"mode": torch.tensor([0, 2])}, ValueError, "mode holds 2; 2 coefficients allow 0 to 1"),
    ({"mode": torch.tensor([-1, 1])}, ValueError, "mode holds -1"),
    ({"mode": torch.tensor([0.0, 1.0])}, TypeError, "mode must be integers"),
    ({"targets": torch.tensor([0.0, 1.0])}, TypeError, "targets must be integer"),
    ({"targets": torch.tensor([[0, 1]])}, ValueError, r"targets has shape \(1, 2\)"),
    ({"targets": torch.tensor([0, 4])}, IndexError, r"targets\[1\] = 4 is outside the vocabulary of 4"),
    ({"targets": torch.tensor([-1, 0])}, IndexError, r"targets\[0\] = -1"),
    ({"logits": torch.ones(2, 4, dtype=torch.int64)}, TypeError, "logits must be one of"),
    ({"logits": torch.ones(2, 0)}, ValueError, "V >= 1"),
    ({"logits": [1.0]}, TypeError, "logits must be a tensor"),
    ({"clip_low": -0.1}, ValueError, "clip_low must be between 0 and 1, got -0.1"),
    ({"clip_high": -0.1}, ValueError, "clip_high must be finite and >= 0, got -0.1"),
    ({"clip_high": float("nan")}, ValueError, "clip_high"),
    ({"clip_delta": 1.1}, ValueError, "clip_delta must be above"),
    ({"temperature": 0.0}, ValueError, "temperature must be finite and > 0, got 0.0"),
    ({"temperature": torch.tensor([1.0, -1.0])}, ValueError, "temperature must be > 0 in every row"),
    ({"temperature": torch.ones(3)}, ValueError, r"temperature has shape \(3,\)"),
    ({"entropy_coef": (0.1,)}, ValueError, "mode holds 1; 1 coefficients allow 0 to 0"),
    ({"entropy_coef": (0.1, 0.2, 0.3), "kl_coef": (0.1, 0.2)}, ValueError, "one coefficient per mode"),
    ({"entropy_coef": ()}, ValueError, "entropy_coef must be finite, one number per mode"),
    ({"entropy_coef": (0.1, float("inf"))}, ValueError, "entropy_coef must be finite"),
]


@pytest.mark.parametrize("backend", ["torch", "native"], indirect=True)
@pytest.mark.parametrize(("change", "error", "words"), BAD)
def test_bad_input(backend, change, error, words):
    arguments = {"logits": torch.zeros(2, 4), "targets": torch.tensor([0, 1])}
    arguments |= {"advantages": torch.ones(2), "mode": torch.tensor([0, 1]), **change}
    with pytest.raises(error, match=words):
        dual_mode_loss(arguments.pop("logits"), arguments.pop("targets"), **arguments)


@pytest.mark.parametrize("backend", ["triton"], indirect=True)
def test_a_target_out_of_range_on_a_gpu_is_nan_for_its_row(device):
    """No synchronisation for a check, and no read out of bounds."""
    logits = torch.randn(4, 33, device=device, requires_grad=True)
    targets = torch.tensor([3, 33, -7, 2**40], device=device)
    out = dual_mode_loss(logits, targets, advantages=torch.ones(4, device=device), mode=targets * 0)
    (gradient,) = torch.autograd.grad(out.loss, logits)
    for x in (out.logprobs, out.entropy, gradient):
        assert x[0].isfinite().all()
        assert x[1:].isnan().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs two devices")
def test_devices_must_agree():
    with pytest.raises(ValueError, match="expected the same device"):
        dual_mode_loss(
            torch.zeros(2, 4).cuda(), torch.tensor([0, 1]), advantages=torch.ones(2), mode=torch.zeros(2).long()
        )
