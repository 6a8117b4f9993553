"""Tests that are written for `device="cuda"` run where there is no GPU: their tensors lie in the CPU's memory."""

import torch
from torch.overrides import TorchFunctionMode


class OnCpu(TorchFunctionMode):
    """`device="cuda"` becomes `device="cpu"` in whatever PyTorch is asked for."""

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        keywords = dict(keywords or {})
        if str(keywords.get("device", "")).startswith("cuda"):
            keywords["device"] = "cpu"
        return function(*arguments, **keywords)


def pretend_to_have_a_gpu() -> None:
    """What such tests ask before they begin."""
    OnCpu().__enter__()
    torch.cuda.is_available = lambda: True
    torch.cuda.manual_seed = torch.manual_seed
    torch.cuda.synchronize = lambda *_: None
    torch.cuda.get_device_capability = lambda *_: (9, 0)
