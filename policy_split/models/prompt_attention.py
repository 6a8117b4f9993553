"""Attention of `SharedPromptBatch` in transformers' models: a response reads its prompt and itself alone.

Registered under names of its own; without a batch's layout it is the attention that stood there before.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from .shared_prompts import ARGUMENT, PromptLayout

REPLACED = ("sdpa",)  # what can be told apart; flash attention has packed batches
UNKNOWN = ("softcap", "sliding_window", "s_aux", "position_bias")  # what a layer may ask for and is not done here


def use_prompt_attention(model: PreTrainedModel) -> str | None:
    """Let the model's attention take a layout; why not, or None if it does. A second call changes nothing."""
    before = str(model.config.get_text_config()._attn_implementation)
    if before.startswith(ARGUMENT):
        return None
    if before not in REPLACED:
        return f"its attention is {before!r}, not one of {', '.join(map(repr, REPLACED))}"
    name = f"{ARGUMENT}_{before}"
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, _attention(ALL_ATTENTION_FUNCTIONS[before]))
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[before])
    model.set_attn_implementation(name)
    if str(model.config.get_text_config()._attn_implementation) != name:
        return "its attention cannot be replaced"
    return None


def use_former_attention(model: PreTrainedModel) -> None:
    """Undo `use_prompt_attention`."""
    name = str(model.config.get_text_config()._attn_implementation)
    if name.startswith(ARGUMENT):
        model.set_attn_implementation(name.removeprefix(f"{ARGUMENT}_"))


def _attention(before: Callable[..., Any]) -> Callable[..., Any]:
    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        layout: PromptLayout | None = options.pop(ARGUMENT, None)
        if layout is None:
            result: tuple[Tensor, Tensor | None] = before(module, query, key, value, attention_mask, **options)
            return result
        asked = [name for name in UNKNOWN if options.get(name) is not None]
        if asked:
            raise ValueError(f"{type(module).__name__} asks for {asked[0]}, which shared prompts do not have")
        return shared_prompt_attention(query, key, value, layout, scale=options.get("scaling")), None

    return attention


def shared_prompt_attention(
    query: Tensor,  # (1, H, S, d)
    key: Tensor,  # (1, K, S, d)
    value: Tensor,  # (1, K, S, d)
    layout: PromptLayout,
    *,
    scale: float | None,
) -> Tensor:
    """(1, S, H, d): softmax attention of each prompt's tokens, and of each response's over its prompt and itself."""
    grouped = query.shape[1] != key.shape[1]
    parts = []
    for queries, keys, mask in layout.readings:
        asked, read, values = _taken(query, queries), _taken(key, keys), _taken(value, keys)
        options: dict[str, Any] = {"attn_mask": mask, "is_causal": mask is None, "scale": scale, "enable_gqa": grouped}
        out = scaled_dot_product_attention(asked, read, values, **options)
        parts.append(out.transpose(1, 2).flatten(0, 1))  # (n * q, H, d)
    return torch.cat(parts)[layout.back][None]


def _taken(x: Tensor, places: Tensor) -> Tensor:
    """(1, H, S, d) at places (n, t) -> (n, H, t, d)."""
    return x[0].transpose(0, 1)[places].transpose(1, 2)
