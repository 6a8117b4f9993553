"""A package `flash_attn` in plain PyTorch, on the CPU, for a test: transformers' own code of flash_attention_2 runs."""

import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import modeling_flash_attention_utils as flash_utils
from transformers import modeling_utils

PACKAGE = {
    "__init__.py": "from flash_attn_stand_in import flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache\n",
    "bert_padding.py": "from flash_attn_stand_in import pad_input, unpad_input\n",
}


@dataclass
class Calls:
    varlen: list[dict] = field(default_factory=list)
    rectangular: int = 0


CALLS = Calls()


def install(monkeypatch, folder: Path) -> Calls:
    """What transformers asks of the package: that it can be imported, is new enough, and has a device."""
    package = folder / "flash_attn"
    package.mkdir(parents=True)
    for name, text in PACKAGE.items():
        (package / name).write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    for name in ("flash_attn", "flash_attn.bert_padding"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.invalidate_caches()
    monkeypatch.setattr(flash_utils, "is_flash_attn_2_available", lambda *args, **kwargs: True)
    entry = flash_utils.FLASH_ATTENTION_COMPATIBILITY_MATRIX[2]
    monkeypatch.setitem(entry, "general_availability_check", lambda *args, **kwargs: True)
    monkeypatch.setitem(entry, "supported_devices", ((lambda: True, "cpu"),))
    assert modeling_utils.FLASH_ATTENTION_COMPATIBILITY_MATRIX[2] is entry
    loaded = ["_loaded_implementation", "_process_flash_kwargs_fn", "_process_with_kvcache_kwargs_fn"]
    loaded += [f"_{name}_fn" for name in ("flash", "flash_varlen", "flash_with_kvcache", "pad", "unpad")]
    for name in filter(flash_utils.__dict__.__contains__, loaded):  # older versions have not all of them
        monkeypatch.setattr(flash_utils, name, None)  # what is loaded now is forgotten after the test
    CALLS.varlen.clear()
    CALLS.rectangular = 0
    return CALLS


def attention(q, k, v, scale, causal, window):
    """(T, H, D) and (S, G, D): the last query stands beside the last key."""
    steps, back = torch.arange(q.shape[0])[:, None] + k.shape[0] - q.shape[0], torch.arange(k.shape[0])
    mask = (back <= steps) if causal else torch.ones(q.shape[0], k.shape[0], dtype=torch.bool)
    if window[0] >= 0:
        mask = mask & (back >= steps - window[0])
    states = [x.transpose(0, 1) for x in (q, k, v)]
    return scaled_dot_product_attention(*states, attn_mask=mask, scale=scale, enable_gqa=True).transpose(0, 1)


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False,
    window_size=(-1, -1), deterministic=False,
):  # fmt: skip
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32  # the kernels read nothing else
    assert cu_seqlens_q[-1] == len(q)
    assert cu_seqlens_k[-1] == len(k)
    # where there is no gradient, transformers 5.7 gives it as a tensor when it unpads by itself
    assert isinstance(max_seqlen_q, int) or not q.requires_grad
    assert max_seqlen_q >= cu_seqlens_q.diff().max()
    CALLS.varlen.append({"bounds": cu_seqlens_q.tolist(), "longest": max_seqlen_q, "grad": q.requires_grad})
    parts = [x.split(bounds.diff().tolist()) for x, bounds in ((q, cu_seqlens_q), (k, cu_seqlens_k), (v, cu_seqlens_k))]
    return torch.cat([attention(*part, softmax_scale, causal, window_size) for part in zip(*parts, strict=True)])


def flash_attn_func(
    q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), deterministic=False
):
    CALLS.rectangular += 1
    return torch.stack([attention(*part, softmax_scale, causal, window_size) for part in zip(q, k, v, strict=True)])


def flash_attn_with_kvcache(*args, **kwargs):
    raise NotImplementedError


def unpad_input(states, mask, unused_mask=None):
    lengths, indices = mask.sum(-1, dtype=torch.int32), mask.flatten().nonzero().flatten()
    bounds = pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    return states.flatten(0, 1)[indices], indices, bounds, int(lengths.max()), lengths


def pad_input(states, indices, batch, length):
    out = states.new_zeros(batch * length, *states.shape[1:])
    return out.index_copy(0, indices.long(), states).view(batch, length, *states.shape[1:])
