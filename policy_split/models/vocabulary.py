"""Token ids of a model and its tokenizer: which end a response, which pads, and which are no token at all."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


class Vocabulary:
    """Ids that a model has an embedding for and its tokenizer no token, as padded vocabularies have them.

    They have no probability: in sampling, in scores and in losses alike, their logits are -inf.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self._absent: dict[tuple[int, torch.device], Tensor] = {}

    def absent(self, count: int, device: torch.device) -> Tensor:
        """Those of the ids below count, (K,)."""
        key = (count, device)
        if key not in self._absent:
            self._absent[key] = torch.tensor(absent_ids(self.tokenizer, count), dtype=torch.int64, device=device)
        return self._absent[key]

    def keep_mask(self, count: int, device: torch.device) -> Tensor | None:
        """(V,) False for those, as the kernels of an LM head take it; None: the tokenizer has all."""
        absent = self.absent(count, device)
        if not len(absent):
            return None
        return torch.ones(count, dtype=torch.bool, device=device).index_fill_(0, absent, False)

    def silenced(self, logits: Tensor) -> Tensor:
        """The logits (..., V) themselves, -inf where there is no token; their gradient is 0 there."""
        absent = self.absent(logits.shape[-1], logits.device)
        if not len(absent):
            return logits
        return _silence(logits, absent)


class _Silenced(torch.autograd.Function):
    """In place, and nothing is kept or copied: what is a function of the softmax has no gradient at -inf."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, absent: Tensor) -> Tensor:
        ctx.mark_dirty(logits)
        return logits.index_fill_(-1, absent, -torch.inf)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


_silence: Callable[[Tensor, Tensor], Tensor] = _Silenced.apply


def absent_ids(tokenizer: Any, count: int) -> list[int]:
    """Of the ids below count those that the tokenizer has no token for."""
    named = _named(tokenizer)
    last = max([len(tokenizer) - 1, *named])
    # a vocabulary is by text, and several ids may have the same
    return [number for number in range(count) if number not in named and (number > last or not _has(tokenizer, number))]


def unknown_ends(model: PreTrainedModel, tokenizer: Any) -> list[int]:
    """Tokens by which the model would end a response, and which the tokenizer does not have."""
    named = _named(tokenizer)
    return [token for token in _ends(model, tokenizer) if token not in named and not _has(tokenizer, token)]


def end_ids(model: PreTrainedModel, tokenizer: Any) -> list[int]:
    """The tokens that end a response: the tokenizer's and those of the model's generation config that it has."""
    unknown = unknown_ends(model, tokenizer)
    return [token for token in _ends(model, tokenizer) if token not in unknown]


def pad_id(model: PreTrainedModel, tokenizer: Any) -> int:
    """What stands where there is no token; the masks say where, so that it may also be a token."""
    pad: int | None = tokenizer.pad_token_id
    return end_ids(model, tokenizer)[0] if pad is None else pad


def _ends(model: PreTrainedModel, tokenizer: Any) -> list[int]:
    configured = model.generation_config.eos_token_id
    configured = configured if isinstance(configured, (list, tuple)) else [configured]
    return sorted({int(token) for token in [tokenizer.eos_token_id, *configured] if token is not None})


def _named(tokenizer: Any) -> frozenset[int]:
    return _ids_of(tokenizer, len(tokenizer))


@functools.lru_cache(maxsize=4)
def _ids_of(tokenizer: Any, size: int) -> frozenset[int]:
    """size: that of the vocabulary, to which tokens may be added."""
    return frozenset(tokenizer.get_vocab().values())


def _has(tokenizer: Any, number: int) -> bool:
    try:
        token = tokenizer.convert_ids_to_tokens(number)
    except Exception:  # slow tokenizers raise what they like
        return False
    return token is not None and (token != tokenizer.unk_token or number == tokenizer.unk_token_id)
