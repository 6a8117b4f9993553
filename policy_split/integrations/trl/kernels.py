"""Our kernels inside TRL's trainers: the fused LM head that they call becomes ours, everything else stays theirs."""

import functools
import types
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from policy_split.extras import check_extra
from policy_split.models.lm_head import inner_model, patch_lm_head
from policy_split.models.vocabulary import Vocabulary
from policy_split_kernels.linear import linear_logprobs_and_entropy
from policy_split_kernels.logprobs import LogprobsAndEntropy


def use_fused_kernels(trainer: Any, *, chunk_bytes: int | None = None, vocabulary: Vocabulary | None = None) -> Any:
    """The TRL trainer, whose log-probs and entropies now come from our fused LM head (its reference model's too).

    For trainers that score by `model(..., labels=labels, fused_lm_head=True)` with a temperature (GRPOTrainer,
    RLOOTrainer, TRL 1.16); call it between the constructor and `train()`. The forward then is::

        log_probs, entropy = linear_logprobs_and_entropy(hidden, lm_head.weight, labels[:, 1:], temperature=...)

    in nats, 0 where a label is -100, both differentiable; aux_loss and generation are unchanged. chunk_bytes: see
    `linear_logprobs_and_entropy`; vocabulary: ids that it does not have get no probability. Raises TypeError for a
    trainer of another kind or a model whose LM head is not `hidden @ weight.T + bias` (nothing is changed then).
    """
    check_extra("trl", "use_fused_kernels")
    temperature = getattr(trainer, "temperature", None)
    if temperature is None or not hasattr(trainer, "_get_per_token_logps_and_entropies"):
        raise TypeError(
            f"use_fused_kernels takes TRL's GRPOTrainer, RLOOTrainer or a subclass, got {type(trainer).__name__}"
        )
    in_float32 = getattr(trainer.args, "cast_lm_head_to_fp32", False)
    models = [trainer.model, getattr(trainer, "ref_model", None)]
    models = [inner_model(trainer.accelerator.unwrap_model(model)) for model in models if model is not None]
    for model in models:
        patch_lm_head(model)  # TypeError before any of them is changed for good
    for model in models:
        _put_in_front(model, temperature, in_float32, chunk_bytes, vocabulary)
    return trainer


def _put_in_front(
    model: nn.Module, temperature: float, in_float32: bool, chunk_bytes: int | None, vocabulary: Vocabulary | None
) -> None:
    """Let the model answer fused_lm_head=True itself; any other call goes on to what stood there before."""
    behind = model.forward

    def head_fn(
        labels: Any, shift_labels: Tensor | None, hidden: Tensor, weight: Tensor, **of_head: Any
    ) -> tuple[LogprobsAndEntropy, Tensor]:
        if shift_labels is None:
            hidden, targets = hidden[:, :-1], labels[:, 1:]
        else:
            targets = shift_labels
        device, options = hidden.device.type, of_head | {"temperature": temperature, "chunk_bytes": chunk_bytes}
        options["keep_mask"] = None if vocabulary is None else vocabulary.keep_mask(len(weight), hidden.device)
        with torch.autocast(device, enabled=False) if in_float32 else nullcontext():
            hidden = hidden.to(weight.dtype) if in_float32 else hidden
            targets = targets.to(hidden.device)
            return linear_logprobs_and_entropy(hidden, weight, targets, **options), targets != -100

    # generate checks its arguments by the signature
    @functools.wraps(type(model).forward)
    def forward(
        self: nn.Module,
        *args: Any,
        fused_lm_head: bool = False,
        labels: Tensor | None = None,
        shift_labels: Tensor | None = None,
        num_items_in_batch: int | Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if not fused_lm_head:
            given = {"labels": labels, "shift_labels": shift_labels, "num_items_in_batch": num_items_in_batch}
            return behind(*args, **kwargs, **{name: value for name, value in given.items() if value is not None})
        from trl.trainer.utils import FusedCausalLMOutput

        kwargs["use_cache"] = False
        out = behind(*args, **kwargs, head_fn=functools.partial(head_fn, labels, shift_labels))
        (log_probs, entropy), mask = out.result
        loss = -log_probs.sum() / (mask.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch)
        return FusedCausalLMOutput(
            loss=loss, log_probs=log_probs, entropy=entropy, label_mask=mask, aux_loss=out.aux_loss
        )

    model.forward = types.MethodType(forward, model)
