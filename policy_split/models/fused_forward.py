"""The forward of a model with a function in its LM head's place: one run of the model's own code, no N x V logits."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from policy_split_kernels.outside_graphs import outside_graphs

from .head_weight import head_weight, holder_of


class UnknownHeadError(RuntimeError):
    """The model does something with its LM head that a head_fn would not know of."""


@dataclass
class FusedLMOutput(CausalLMOutputWithPast):
    """What a patched model returns where a head_fn is given: the model's own output, without logits.

    The loss is result.loss where there is one, and the weighted aux_loss where the model returns one. The name of the
    cache is that of the installed transformers: `past_key_values`, and `cache` from 5.24 on.
    """

    result: Any = None  # what head_fn returned
    aux_loss: Tensor | None = None


KEPT = tuple(field.name for field in fields(CausalLMOutputWithPast) if field.name not in ("loss", "logits"))


@outside_graphs  # every call has a head_fn of its own: dynamo would compile it anew
def fused_forward(
    model: Any, forward: Callable[..., Any], head_fn: Callable[..., Any], *args: Any, check: bool, **kwargs: Any
) -> FusedLMOutput:
    if kwargs.get("labels") is not None:
        raise ValueError("labels and head_fn are two losses of one forward; give one of them")
    if kwargs.get("return_dict", True) is False:
        raise ValueError("head_fn needs return_dict=True: the result has names")
    head = model.get_output_embeddings()
    stand_in = _StandIn(head, head_fn, *_presumed(model.config))
    with _in_place_of(head, stand_in, model):
        try:
            out = forward(*args, **kwargs)
        except Exception as error:
            if not (check and stand_in.answered):  # head_fn's own error, or the model's before it
                raise
            raise _unknown(model) from error
    if stand_in.calls != 1:
        name = type(model).__name__
        raise UnknownHeadError(f"{name} called its LM head {stand_in.calls} times in one forward, not once")
    if check:
        stand_in.check(model, out.logits)
    aux_loss, loss = getattr(out, "aux_loss", None), getattr(stand_in.result, "loss", None)
    if loss is not None and aux_loss is not None:
        loss = loss + _aux_coefficient(model) * aux_loss.to(loss.device)
    kept = {name: getattr(out, name, None) for name in KEPT}
    return FusedLMOutput(loss=loss, result=stand_in.result, aux_loss=aux_loss, **kept)


class _StandIn(nn.Module):
    """Stands where the head stands while the model runs: calls head_fn, and returns logits by which to see what
    the model makes of them."""

    def __init__(self, head: Any, head_fn: Callable[..., Any], softcap: float | None, logit_scale: float):
        super().__init__()
        self.head, self.head_fn, self.softcap, self.logit_scale = head, head_fn, softcap, logit_scale
        self.calls, self.answered, self.result = 0, False, None

    def __getattr__(self, name: str) -> Any:  # models ask their head for its weight's dtype
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("head"), name)

    def forward(self, hidden: Tensor) -> Tensor:
        self.calls, self.answered = self.calls + 1, False
        self.result = call_head(self.head, hidden, self.head_fn, self.softcap, self.logit_scale)
        self.answered = True
        return self._probe(hidden.device, hidden.dim())

    def _probe(self, device: torch.device, dims: int) -> Tensor:
        """(1, 1, V): every token has a logit of its own, most of them near 0, so that no change goes unseen."""
        steps = torch.linspace(-1, 1, self.head.out_features, device=device)
        return (1000 * steps.pow(3)).view((1,) * (dims - 1) + (-1,))

    @torch.no_grad()
    def check(self, model: nn.Module, logits: Tensor) -> None:
        probe = self._probe(logits.device, logits.dim())
        expected = self.logit_scale * probe.double()
        if self.softcap is not None:
            expected = self.softcap * torch.tanh(expected / self.softcap)
        tolerance = 64 * torch.finfo(logits.dtype).eps
        same = logits.shape == probe.shape
        if not (same and torch.allclose(logits.double(), expected, rtol=tolerance, atol=tolerance)):
            raise _unknown(model)


def _unknown(model: nn.Module) -> UnknownHeadError:
    return UnknownHeadError(
        f"{type(model).__name__} changes its logits after lm_head in a way that is not known (known are a constant "
        f"factor and final_logit_softcapping, as its config names them): use its logits instead of head_fn"
    )


def _presumed(config: Any) -> tuple[float | None, float]:
    """(softcap, factor) of the logits, by the names that transformers' models have for them."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config

    def setting(name: str) -> float | None:
        value: float | None = getattr(text, name, None)
        return getattr(config, name, None) if value is None else value

    scale = 1.0
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):  # Cohere, Muse, Falcon-H1
        factor = setting(name)
        scale *= 1.0 if factor is None else factor
    divisor = setting("logits_scaling")  # Granite
    return setting("final_logit_softcapping"), scale if divisor is None else scale / divisor


def _aux_coefficient(model: Any) -> float:
    for owner in (model, model.config, model.config.get_text_config()):
        for name in ("router_aux_loss_coef", "aux_loss_coef"):
            coefficient: float | None = getattr(owner, name, None)
            if coefficient is not None:
                return coefficient
    raise RuntimeError(f"{type(model).__name__} returns aux_loss, but neither it nor its config has its coefficient")


class _Call:
    """head_fn with its settings, in an object that no wrapper looks into: what FSDP2 finds, it casts."""

    def __init__(self, head_fn: Callable[..., Any], softcap: float | None, logit_scale: float):
        self.head_fn, self.settings = head_fn, {"softcap": softcap, "logit_scale": logit_scale}

    def __call__(self, head: nn.Module, hidden: Tensor) -> Any:
        hidden, weight, bias = head_weight(head, hidden)
        return self.head_fn(hidden, weight, bias=bias, **self.settings)


def call_head(
    head: nn.Module, hidden: Tensor, head_fn: Callable[..., Any], softcap: float | None, logit_scale: float
) -> Any:
    """head_fn of the head's weight, called through the head's own __call__: its hooks gather a sharded weight."""
    owner = holder_of(head)
    before = vars(owner).get("forward")
    owner.forward = lambda hidden, call: call(owner, hidden)
    try:
        return owner(hidden, _Call(head_fn, softcap, logit_scale))
    finally:
        del owner.forward
        if before is not None:
            owner.forward = before


@contextmanager
def _in_place_of(head: nn.Module, stand_in: nn.Module, model: nn.Module) -> Iterator[None]:
    places = ((module, name) for module in model.modules() for name, child in module._modules.items() if child is head)
    parent, name = next(places)
    parent._modules[name] = stand_in
    try:
        yield
    finally:
        parent._modules[name] = head
