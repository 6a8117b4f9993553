"""The one place that decides which backend computes: Triton on GPUs, C++ on CPUs, plain PyTorch anywhere."""

import functools
import importlib
import importlib.util
import os
import sys
import warnings
from types import ModuleType

import torch

BACKENDS = {
    "auto": "the fastest one that is there",
    "torch": "plain PyTorch, any device",
    "native": "C++, CPU tensors",
    "triton": "Triton, CUDA and ROCm tensors",
}
# The folder of each backend; each has a module for every family of operations, with the same functions.
COLUMNS = {"torch": "reference", "native": "cpu", "triton": "gpu"}
_chosen: str | None = None


def set_backend(name: str) -> None:
    """Choose the backend of every operation: "auto", "torch", "native" or "triton"; raises ValueError otherwise."""
    global _chosen
    _chosen = _checked(name, "set_backend")


def get_backend() -> str:
    """The chosen backend: that of `set_backend`, else of the environment's POLICY_SPLIT_BACKEND, else "auto"."""
    if _chosen is not None:
        return _chosen
    return _checked(os.environ.get("POLICY_SPLIT_BACKEND", "auto"), "POLICY_SPLIT_BACKEND")


def cells(device: torch.device, family: str = "logits") -> ModuleType:
    """The module whose functions compute on tensors of this device."""
    name = get_backend()
    if name == "auto":
        name = _fastest(device)
    if name == "native":
        _check_native(device)
    if name == "triton":
        _check_triton(device)
    return _module(f".{COLUMNS[name]}.{family}")


@functools.cache
def _module(name: str) -> ModuleType:
    return importlib.import_module(name, __package__)


def _triton_is_there() -> bool:
    return "triton" in sys.modules or importlib.util.find_spec("triton") is not None


def _checked(name: str, where: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{where}: unknown backend {name!r}; expected one of {', '.join(map(repr, BACKENDS))}")
    return name


def _fastest(device: torch.device) -> str:
    if device.type == "cuda" and _triton_is_there():
        return "triton"
    if device.type == "cpu":
        native = _module(".cpu.library")
        if native.opened() is not None:
            return "native"
        warnings.warn(f"{native.why_missing()}; plain PyTorch serves, many times slower", RuntimeWarning, stacklevel=2)
    return "torch"


def _check_native(device: torch.device) -> None:
    if device.type != "cpu":
        raise ValueError(f"backend 'native' computes on CPU tensors, these are on {device}; use 'triton' or 'auto'")
    native = _module(".cpu.library")
    if native.opened() is None:
        raise RuntimeError(f"backend 'native': {native.why_missing()}")


def _check_triton(device: torch.device) -> None:
    if not _triton_is_there():
        raise RuntimeError("backend 'triton': the package triton is not installed; pip install triton")
    if device.type != "cuda" and not (device.type == "cpu" and _triton_takes_cpu()):
        raise ValueError(f"backend 'triton' computes on CUDA and ROCm tensors, these are on {device}; use 'auto'")


def _triton_takes_cpu() -> bool:
    """Whether something executes Triton's kernels on CPU tensors: its interpreter (TRITON_INTERPRET=1, set before the
    kernels are imported), or a program that stands in for its launcher and says so by POLICY_SPLIT_TRITON_ON_CPU=1."""
    return "1" in (os.environ.get("TRITON_INTERPRET"), os.environ.get("POLICY_SPLIT_TRITON_ON_CPU"))
