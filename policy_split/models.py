"""Models as the trainer needs them: loaded with clear errors, no dropout, logits of the completion alone."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from .config import PolicySplitConfig
from .extras import check_extra


def load_model(model: PreTrainedModel | str, config: PolicySplitConfig) -> PreTrainedModel:
    """The model itself, or that of a name or path in config.model_dtype; ImportError for attention not installed."""
    if isinstance(model, nn.Module):
        return model
    if not isinstance(model, str):
        raise TypeError(f"model must be a PreTrainedModel or a name or path, got {type(model).__name__}")
    if config.attn_implementation == "flash_attention_2":
        instead = ", or choose attn_implementation='sdpa'"
        check_extra("flash_attn", "attn_implementation='flash_attention_2'", instead)
    return AutoModelForCausalLM.from_pretrained(
        model, dtype=config.model_dtype, attn_implementation=config.attn_implementation
    )


def load_tokenizer(tokenizer: Any, model: PreTrainedModel | str) -> Any:
    """The tokenizer itself, or that of a name or path; None: the one that is saved with the model."""
    if tokenizer is None and not isinstance(model, str):
        raise ValueError("tokenizer=None needs a model given by name or path; pass the model's tokenizer")
    source = model if tokenizer is None else tokenizer
    return AutoTokenizer.from_pretrained(source) if isinstance(source, str) else source


def check_fit(model: PreTrainedModel, tokenizer: Any, longest_prompt: int, max_completion_length: int) -> None:
    """ValueError if tokens have no embedding, responses no end, or rows no place in the model's positions."""
    embeddings = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > embeddings:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens, the model {embeddings} embeddings: they do not belong"
        )
    if not end_ids(model, tokenizer):
        raise ValueError("neither the tokenizer nor the model has an eos token; responses could not end")
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and longest_prompt + max_completion_length > positions:
        raise ValueError(
            f"the longest prompt ({longest_prompt} tokens) and max_completion_length={max_completion_length} "
            f"do not fit into the model's {positions} positions"
        )


def end_ids(model: PreTrainedModel, tokenizer: Any) -> list[int]:
    """The tokens that end a response: the tokenizer's and those of the model's generation config."""
    configured = model.generation_config.eos_token_id
    configured = configured if isinstance(configured, (list, tuple)) else [configured]
    return sorted({int(token) for token in [tokenizer.eos_token_id, *configured] if token is not None})


def pad_id(model: PreTrainedModel, tokenizer: Any) -> int:
    """What stands where there is no token; the masks say where, so that it may also be a token."""
    return end_ids(model, tokenizer)[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def enable_checkpointing(model: PreTrainedModel) -> None:
    """Recompute activations in backward; every dropout becomes 0, as checkpointing needs model.train()."""
    # transformers 5 renames the one to the other
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


@dataclass
class Policy:
    """A model that answers and scores: `bare` generates; `model`, accelerate's wrapper of it, gives log-probs."""

    model: nn.Module
    tokenizer: Any
    bare: PreTrainedModel | None = None

    def __post_init__(self) -> None:
        self.bare = self.model if self.bare is None else self.bare
        self.end_ids = end_ids(self.bare, self.tokenizer)
        self.pad_id = pad_id(self.bare, self.tokenizer)
        self.forward_arguments = set(inspect.signature(self.bare.forward).parameters)

    @property
    def device(self) -> torch.device:
        return self.bare.get_input_embeddings().weight.device

    def completion_logits(self, input_ids: Tensor, attention_mask: Tensor | None, length: int) -> Tensor:
        """Logits (B, T, V) that predict the last T tokens of each row (B, L); the prompt's logits are never computed.

        Rows are left-padded prompts, then completions with padding on the right. attention_mask (B, L) may be None
        where no prompt is padded: what stands behind a causal row does not reach it.
        """
        input_ids = input_ids[:, :-1]  # the last token predicts nothing that is scored
        arguments: dict[str, Any] = {"logits_to_keep": length}
        if attention_mask is not None:
            attention_mask = attention_mask[:, :-1]
            arguments["position_ids"] = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        arguments = {name: value for name, value in arguments.items() if name in self.forward_arguments}
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **arguments).logits
        return logits[:, -length:]
