"""Cross-entropy as quack and cut-cross-entropy call it, computed by our functions."""

import sys
import types

import torch
from torch.nn.functional import linear

from policy_split import linear_logprobs_and_entropy, logprobs_and_entropy


def _reduced(losses, valid, weights, reduction):
    losses = losses * weights
    if reduction == "mean":
        return losses.sum() / (valid * weights).sum()
    return losses.sum() if reduction == "sum" else losses


def _ours(targets, ignore_index):
    valid = targets != ignore_index
    return torch.where(valid, targets, -100), valid


def _class_weights(weight, targets):
    return 1.0 if weight is None else weight[targets.clamp(min=0)]


def cross_entropy(x, target, weight=None, ignore_index=-100, reduction="mean", lse_partial=None):
    targets, valid = _ours(target, ignore_index)
    losses = -logprobs_and_entropy(x, targets).logprobs
    return _reduced(losses, valid, _class_weights(weight, targets), reduction)


def cross_entropy_fwd(
    x, target, weight=None, ignore_index=-100, return_lse=False, return_dx=False, inplace_backward=False
):
    leaf = x.detach().clone().requires_grad_()
    losses = cross_entropy(leaf, target, weight, ignore_index, "none")
    result = [losses.detach()]
    if return_lse:
        result.append(log_sum_exp(leaf))
    if return_dx:
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        result.append(x.copy_(gradient) if inplace_backward else gradient)
    return tuple(result) if len(result) > 1 else result[0]


def cross_entropy_bwd(x, target, dloss, lse, weight=None, ignore_index=-100):
    leaf = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(leaf, target, weight, ignore_index, "none"), leaf, dloss)
    return gradient


@torch.no_grad()
def log_sum_exp(x):
    """Of the first logit and its log-probability."""
    first = torch.zeros(x.shape[:-1], dtype=torch.int64)
    return x[..., 0].float() - logprobs_and_entropy(x, first).logprobs


def chunked_linear_cross_entropy(
    x, weight, target, bias=None, chunk_size=4096, ignore_index=-100, reduction="mean", tuned=True, use_scaled_exp=False
):
    targets, valid = _ours(target, ignore_index)
    chunk_bytes = chunk_size * weight.shape[0] * 4
    losses = -linear_logprobs_and_entropy(x, weight, targets, bias=bias, chunk_bytes=chunk_bytes).logprobs
    return _reduced(losses, valid, 1.0, reduction)


def linear_cross_entropy(
    e, c, targets, ignore_index=-100, softcap=None, reduction="mean", shift=False, filter_eps=None, impl=None
):
    if shift:
        e, targets = e[:, :-1], targets[:, 1:]
    targets, valid = _ours(targets, ignore_index)
    losses = -linear_logprobs_and_entropy(e, c, targets, softcap=softcap).logprobs
    return _reduced(losses, valid, 1.0, reduction)


@torch.no_grad()
def linear_log_sum_exp(e, c, softcap=None):
    first = (e.float() @ c[0].float()).unsqueeze(-1)
    first = (first if softcap is None else softcap * torch.tanh(first / softcap)).squeeze(-1)
    return first - linear_logprobs_and_entropy(e, c, torch.zeros(e.shape[:-1], dtype=torch.int64), softcap=softcap)[0]


def _reference(x, weight, bias, target, ignore_index=-100, reduction="mean"):
    """PyTorch's, which quack's tests import from the module that they test."""
    return torch.nn.functional.cross_entropy(
        linear(x, weight, bias), target, ignore_index=ignore_index, reduction=reduction
    )


def stand_in_for_quack() -> None:
    """Its modules cannot be imported without its GPU compiler."""
    package, rows, head = (types.ModuleType(f"quack{name}") for name in ("", ".cross_entropy", ".linear_cross_entropy"))
    for function in (cross_entropy, cross_entropy_fwd, cross_entropy_bwd):
        setattr(rows, function.__name__, function)
    head.chunked_linear_cross_entropy = chunked_linear_cross_entropy
    head.linear_cross_entropy_func_ref = _reference
    head.scaled_exp_lce_supported = lambda *_: False
    head.scaled_exp_linear_cross_entropy = None
    sys.modules |= {module.__name__: module for module in (package, rows, head)}


def stand_in_for_apple() -> None:
    import cut_cross_entropy
    import cut_cross_entropy.cce_lse_forward as forward

    cut_cross_entropy.linear_cross_entropy = linear_cross_entropy
    forward.cce_lse_forward_kernel = linear_log_sum_exp
