"""What a run is started with: accelerator (devices, precision, trackers) and optimizer."""

import importlib.util
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from .config import PolicySplitConfig
from .extras import check_extra

PROJECT = "policy-split"
# tracker -> packages of which one must be there
TRACKERS = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "trackio": ("trackio",)}


def make_accelerator(config: PolicySplitConfig) -> Accelerator:
    """Accelerator for the settings; ValueError for an unknown tracker, ImportError for one that is not installed."""
    for name in config.trackers:
        if name not in TRACKERS:
            raise ValueError(
                f"report_to={config.report_to!r}: unknown tracker {name!r}; expected {', '.join(TRACKERS)}"
            )
        if not any(importlib.util.find_spec(package) for package in TRACKERS[name]):
            check_extra(name, f"report_to={config.report_to!r}")
    return Accelerator(
        cpu=config.use_cpu,
        mixed_precision="bf16" if config.bf16 else "fp16" if config.fp16 else "no",
        log_with=config.trackers or None,
        project_dir=config.output_dir,
    )


def start_trackers(accelerator: Accelerator, config: PolicySplitConfig, step: int, *, resume: bool) -> None:
    """Start config.trackers under the name of the run's folder, at its step (from 1); ValueError if one does not start.

    A run that is resumed goes on in tensorboard, which drops what is behind the checkpoint, and in trackio; in wandb it
    is another run of the same name.
    """
    name = Path(config.output_dir).absolute().name
    options = {
        "tensorboard": {"purge_step": step},
        "wandb": {"name": name, "dir": config.output_dir},
        "trackio": {"name": name, "resume": "allow" if resume else "never"},
    }
    # trackers take numbers and texts only
    flat: dict[str, Any] = {
        name: value if isinstance(value, (bool, int, float, str)) else str(value)
        for name, value in asdict(config).items()
    }
    try:
        accelerator.init_trackers(PROJECT, config=flat, init_kwargs=options)
    except Exception as error:
        accelerator.trackers = []  # those that have not started cannot be finished either
        raise ValueError(
            f"report_to={config.report_to!r}: a tracker did not start ({type(error).__name__}: {error})"
        ) from error


def make_optimizer(model: nn.Module, config: PolicySplitConfig) -> torch.optim.AdamW:
    """AdamW over what requires a gradient, with weight decay for matrices alone."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},  # norms and biases
    ]
    betas = (config.adam_beta1, config.adam_beta2)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=config.adam_epsilon)
