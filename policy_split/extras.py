"""Optional packages: found when something asks for them, and named with the command that installs them."""

import importlib
import importlib.util
from types import ModuleType

EXTRAS = {
    "flash_attn": "flash-attn",
    "gguf": "gguf",
    "reasoning_gym": "reasoning-gym",
    "math_verify": "math",
    "peft": "peft",
    "matplotlib": "plot",
    "tensorboard": "trackers",
    "wandb": "trackers",
    "trackio": "trackers",
    "trl": "trl",
    "verl": "verl",
    "vllm": "vllm",
}


def check_extra(package: str, asked_by: str, instead: str = "") -> None:
    """Raises ImportError, saying what asked for the package and how to install it, unless it is there."""
    if importlib.util.find_spec(package) is None:
        name = package.replace("_", "-")
        raise ImportError(f"{asked_by} needs the package {name}: pip install policy-split[{EXTRAS[package]}]{instead}")


def import_extra(package: str, asked_by: str, module: str = "") -> ModuleType:
    """The package (or a module of it), with the error of `check_extra`."""
    check_extra(package, asked_by)
    return importlib.import_module(module or package)
