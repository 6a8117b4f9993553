"""What is right, in float64 and in PyTorch's own operations, written without a look at the package's reference."""

import os

import torch

from policy_split import get_backend

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# Rounding of the result: gradients are stored in the logits' dtype, statistics in float32 (float64 for float64).
GRADIENT_RTOL = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}


def statistics(logits, targets, temperature=1.0):
    """(logprobs, entropy) of float64 logits (N, V), differentiable; -inf logits allowed."""
    temperature = torch.as_tensor(temperature, dtype=torch.float64, device=logits.device)
    log_p = torch.log_softmax(logits / temperature.reshape(-1, 1), -1)
    logprobs = log_p.gather(-1, targets[:, None]).squeeze(-1)
    finite = torch.where(log_p == -torch.inf, 0.0, log_p)
    return logprobs, -(log_p.exp() * finite).sum(-1)


def loss(logits, targets, *, advantages, mode, old_logprobs=None, ref_logprobs=None, weights, entropy_coef, kl_coef,
         temperature=1.0, clip_low=0.2, clip_high=0.2, clip_delta=None):  # fmt: skip
    """Scalar loss of float64 logits (N, V) by the formula of the docstring, differentiable."""
    l, entropy = statistics(logits, targets, temperature)
    ratio = (l - (l.detach() if old_logprobs is None else old_logprobs)).exp()
    bounded = ratio if clip_delta is None else torch.where(advantages < 0, ratio.clamp(max=clip_delta), ratio)
    surrogate = torch.min(bounded * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)
    kl = 0.0
    if ref_logprobs is not None:
        kl = (ref_logprobs - l).exp() - (ref_logprobs - l) - 1
    coef_h = torch.tensor(entropy_coef, dtype=torch.float64, device=logits.device)[mode]
    coef_k = torch.tensor(kl_coef, dtype=torch.float64, device=logits.device)[mode]
    return (weights * (-surrogate - coef_h * entropy + coef_k * kl)).sum()


def assert_gradient_close(actual, expected, dtype, terms=0.0):
    """Each element to the rounding of its dtype, and of float32 relative to the row's largest element or `terms` (N,),
    the size of what cancelled in it."""
    actual, expected = actual.double(), expected.double()
    scale = expected.abs().amax(-1, keepdim=True) + torch.as_tensor(terms, device=actual.device).reshape(-1, 1)
    slack = 1e-13 if dtype == torch.float64 else 1e-6
    smallest = 6e-8 if dtype == torch.float16 else 0.0
    rtol = GRADIENT_RTOL[dtype]
    if dtype == torch.bfloat16 and get_backend() == "triton" and os.environ.get("TRITON_INTERPRET") == "1":
        rtol *= 2  # Triton's interpreter cuts bfloat16 off where the hardware rounds
    bound = rtol * expected.abs() + slack * scale + smallest
    wrong = ~((actual - expected).abs() <= bound)
    worst = ((actual - expected).abs() / bound).nan_to_num(nan=torch.inf).max() if wrong.any() else 0
    assert not wrong.any(), (
        f"{int(wrong.sum())} of {wrong.numel()} gradients are off, worst {worst:.1f} times the bound"
    )
