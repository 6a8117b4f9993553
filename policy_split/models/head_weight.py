"""The LM head as `hidden @ weight.T + bias`: of a linear layer, and of one that PEFT has wrapped."""

from typing import Any

import torch
from torch import Tensor, nn


def holder_of(head: Any) -> nn.Module:
    """The module that has the weight and is called for it; TypeError, which says what was found, if there is none."""
    if _is_copy(head):
        trained = not head.disable_adapters and len(head.active_adapters) > 0
        return holder_of(head.modules_to_save[head.active_adapters[0]] if trained else head.original_module)
    base = head.base_layer if _is_lora(head) else head
    # what another forward computes cannot be known: quantised, normalised or parallel layers
    if not (isinstance(base, nn.Linear) and type(base).forward is nn.Linear.forward):
        raise TypeError(f"the LM head must be an nn.Linear or PEFT's lora.Linear of one, got {_described(base)}")
    if not base.weight.is_floating_point():
        raise TypeError(f"the LM head's weight must be of floating point, got {base.weight.dtype}")
    if _is_lora(head):
        _check_lora(head)
    holder: nn.Module = head
    return holder


def head_weight(head: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """(hidden (..., D'), weight (V, D'), bias) whose product is what the head would compute; D' is D but for LoRA."""
    if _is_lora(head):
        hidden, weight, bias = _with_lora(head, hidden)
    else:
        weight, bias = head.weight, head.bias
    if weight.is_meta:
        raise RuntimeError("the LM head's weight is offloaded (on the meta device) where the head is called")
    return hidden, weight, bias


def _is_copy(head: Any) -> bool:
    return isinstance(head, nn.Module) and "modules_to_save" in head._modules and "original_module" in head._modules


def _is_lora(head: Any) -> bool:
    return isinstance(head, nn.Module) and {"base_layer", "lora_A", "lora_B"} <= head._modules.keys()


def _described(head: Any) -> str:
    shape = getattr(getattr(head, "weight", None), "shape", None)
    return type(head).__name__ + ("" if shape is None else f" with a weight of shape {tuple(shape)}")


def _check_lora(head: Any) -> None:
    for name in head.active_adapters:
        variant = getattr(head, "lora_variant", {}).get(name)
        if variant is not None or getattr(head, "use_dora", {}).get(name):
            kind = "DoRA" if variant is None else type(variant).__name__
            raise TypeError(f"the LM head's adapter {name!r} is of {kind}; only plain LoRA is known here")


def _with_lora(head: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """LoRA adds B(A(dropout(h))) * scaling: more columns of hidden and weight. Added to W, a small B @ A would be
    lost in bfloat16, and dropout would have no place."""
    if head.disable_adapters and head.merged:
        head.unmerge()
    weight, bias = head.base_layer.weight, head.base_layer.bias
    hiddens, weights = [hidden], [weight]
    for name in [] if head.disable_adapters or head.merged else head.active_adapters:
        if name in head.lora_A:
            down, up, scaling = head.lora_A[name], head.lora_B[name], head.scaling[name]
            low = down(head.lora_dropout[name](hidden.to(down.weight.dtype))) * scaling
            hiddens.append(low.to(hidden.dtype))
            weights.append(up.weight.to(weight.dtype))
            if up.bias is not None:
                bias = up.bias * scaling if bias is None else bias + up.bias * scaling
    if len(weights) == 1:
        return hidden, weight, bias
    return torch.cat(hiddens, -1), torch.cat(weights, 1), bias
