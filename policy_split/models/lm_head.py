"""A model that hands its last hidden states and its LM head to a loss, instead of making N x V logits.

    patch_lm_head(model)
    loss = functools.partial(linear_dual_mode_loss, targets=targets, advantages=advantages, mode=mode)
    out = model(input_ids=ids, attention_mask=mask, logits_to_keep=T, head_fn=loss)
    out.loss.backward()

The function is called where the model calls its LM head, inside its forward: DDP, FSDP2 and accelerate see the head's
weight used where they expect it. A loss that reads `lm_head.weight` outside is not seen by them, and the ranks drift
apart.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, SupportsIndex

from torch import nn

from .fused_forward import FusedLMOutput, UnknownHeadError, fused_forward
from .head_weight import holder_of

__all__ = ["FusedLMOutput", "UnknownHeadError", "inner_model", "is_patched", "patch_lm_head", "unpatch_lm_head"]

_STATE = "_patched_lm_head"


def patch_lm_head(model: nn.Module) -> nn.Module:
    """The model, whose forward now takes `head_fn`: a function that is given the LM head instead of its logits.

    With it the forward does the same as::

        hidden = ...  # (B, T, D), what the model gives its lm_head, cut by logits_to_keep
        result = head_fn(hidden, lm_head.weight, bias=lm_head.bias, softcap=softcap, logit_scale=logit_scale)
        loss = result.loss  # where it has one; + router_aux_loss_coef * aux_loss where the model returns aux_loss
        return FusedLMOutput(loss, result=result, aux_loss=aux_loss, ...)

    where `softcap * tanh(logit_scale * logits / softcap)` is what the model makes of its head's logits; that is
    measured once, and UnknownHeadError says so if it makes something else. Without `head_fn`, and so in generate,
    nothing changes. Parameters, state_dict and save_pretrained are as before; a copy or pickle is patched too, with
    weights of its own. Tied weights get both gradients. A PeftModel is patched inside: LoRA on the head is the weight
    `[W, B]` beside hidden `[h, scaling * A(dropout(h))]`, (V, D + r), one copy of W.

    Patch before accelerate, DDP or fully_shard; patching twice has no further effect. `head_fn` and its arguments reach
    the head as they are: FSDP2 casts the tensors among a forward's arguments, not those inside a functools.partial.
    Tensors of the result must stand in tuples, named tuples, lists or dicts, so that FSDP2 finds them.
    torch.compile: compile the model's layers; of a model compiled as a whole, a call with head_fn runs uncompiled.
    Raises TypeError for a model without an LM head or with one that is not `hidden @ weight.T + bias`; when called,
    ValueError for labels or a tuple as output together with `head_fn`.
    """
    bare: Any = inner_model(model)
    if not callable(getattr(bare, "get_output_embeddings", None)):
        raise TypeError(f"{type(bare).__name__} has no get_output_embeddings(); pass the model, not a wrapper of it")
    holder_of(bare.get_output_embeddings())  # TypeError for a head that cannot be read
    state = vars(bare).get(_STATE)
    if state is None:
        # one that accelerate or others have put in front of the class's; ours stands in front of it
        vars(bare)[_STATE] = state = _State(vars(bare).pop("forward", None))
    state.active = True
    if not isinstance(bare, _Patched):
        original: Any = type(bare)
        bare.__class__ = _patched_class(original)
    return model


def unpatch_lm_head(model: nn.Module) -> nn.Module:
    """The model as it was before `patch_lm_head`.

    What was wrapped around it since then (FSDP2's class, accelerate's forward) stays and works; head_fn is an error.
    """
    bare: Any = inner_model(model)
    state = vars(bare).get(_STATE)
    if state is None:
        return model
    state.active = False
    if (original := _original(type(bare))) is not None:
        bare.__class__ = original
        if "forward" not in vars(bare):
            del vars(bare)[_STATE]
            if state.forward is not None:
                vars(bare)["forward"] = state.forward
    return model


def is_patched(model: nn.Module) -> bool:
    """Whether the model's forward takes `head_fn`."""
    state: _State | None = vars(inner_model(model)).get(_STATE)
    return state is not None and state.active


@dataclass
class _State:
    forward: Callable[..., Any] | None  # what stood in front of the class's forward
    active: bool = True
    checked: bool = False  # that its logits are what they are presumed to be


class _Patched:
    """First base of every patched class: says what it is, and how to pickle a class that no module holds."""

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        reduced, original = super().__reduce_ex__(protocol), _original(type(self))
        if original is None or isinstance(reduced, str):
            return reduced
        return _unpickled, (original,), *reduced[2:]


def _unpickled(original: Any) -> nn.Module:
    made = _patched_class(original)
    return made.__new__(made)


def _original(patched: type) -> type | None:
    """What the class was made of; None for other classes, those that FSDP2 makes of a patched one among them."""
    return vars(patched).get("_original")


@functools.cache
def _patched_class(original: type[nn.Module]) -> type[nn.Module]:
    """A subclass that goes by the original's name, as configurations and checkpoints write it down."""

    def forward(self: nn.Module, *args: Any, head_fn: Callable[..., Any] | None = None, **kwargs: Any) -> Any:
        state = vars(self).get(_STATE)
        ahead = None if state is None else state.forward
        call = functools.partial(original.forward, self) if ahead is None else ahead
        if head_fn is None:
            return call(*args, **kwargs)
        if state is None or not state.active:
            raise RuntimeError(f"head_fn: the LM head of this {original.__name__} is not patched any more")
        out = fused_forward(self, call, head_fn, *args, check=not state.checked, **kwargs)
        state.checked = True
        return out

    forward.__doc__ = original.forward.__doc__
    vars(forward)["__signature__"] = _with_head_fn(original.forward)  # for generate, which would unwrap __wrapped__
    names = {name: getattr(original, name) for name in ("__module__", "__qualname__", "__doc__")}
    base: type = original
    return type(original.__name__, (_Patched, base), {"forward": forward, "_original": original} | names)


def _with_head_fn(forward: Callable[..., Any]) -> inspect.Signature:
    signature = inspect.signature(forward)
    parameters = list(signature.parameters.values())
    place = len(parameters) - any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    parameters.insert(place, inspect.Parameter("head_fn", inspect.Parameter.KEYWORD_ONLY, default=None))
    return signature.replace(parameters=parameters)


def inner_model(model: nn.Module) -> nn.Module:
    """The model inside a PeftModel, or the model itself."""
    base_model: Callable[[], nn.Module] | None = getattr(model, "get_base_model", None)
    return base_model() if hasattr(model, "peft_config") and callable(base_model) else model
