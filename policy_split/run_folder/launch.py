"""What a run is started with: accelerator (devices, precision, trackers) and optimizer."""

import importlib.util
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy

from policy_split.config import PolicySplitConfig
from policy_split.extras import check_extra

PROJECT = "policy-split"
# tracker -> packages of which one must be there
TRACKERS = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "trackio": ("trackio",)}


def make_accelerator(config: PolicySplitConfig) -> Accelerator:
    """Accelerator for the settings and for what `accelerate launch` has put into the environment.

    ValueError: an unknown tracker, FSDP of version 1, or FSDP on CPUs. ImportError: a tracker that is not installed.
    """
    for name in config.trackers:
        if name not in TRACKERS:
            raise ValueError(
                f"report_to={config.report_to!r}: unknown tracker {name!r}; expected {', '.join(TRACKERS)}"
            )
        if not any(importlib.util.find_spec(package) for package in TRACKERS[name]):
            check_extra(name, f"report_to={config.report_to!r}")
    plugin = _fsdp_plugin(config)
    accelerator = Accelerator(
        cpu=config.use_cpu,
        mixed_precision="bf16" if config.bf16 else "fp16" if config.fp16 else "no",
        fsdp_plugin=plugin,
        log_with=config.trackers or None,
        project_dir=config.output_dir,
    )
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    if plugin is not None and accelerator.num_processes > 1 and not accelerator.is_fsdp2:
        raise ValueError(
            f"FSDP was asked for, and accelerate has made {accelerator.distributed_type.value} of it: it shards models "
            f"on GPUs alone; on CPUs launch without FSDP"
        )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        _set_deepspeed(accelerator.state.deepspeed_plugin.deepspeed_config, config)
    return accelerator


def _set_deepspeed(settings: dict[str, Any], config: PolicySplitConfig) -> None:
    """What DeepSpeed does itself: clip and step, after the last micro-batch of an optimizer step."""
    settings["train_micro_batch_size_per_gpu"] = config.per_device_train_batch_size
    settings["gradient_accumulation_steps"] = 1  # it would divide the loss, whose weights are those of the whole step
    settings["gradient_clipping"] = config.max_grad_norm


def _fsdp_plugin(config: PolicySplitConfig) -> FullyShardedDataParallelPlugin | None:
    """FSDP2's settings from the environment, if it was asked for, with a precision that leaves log-probs alone.

    accelerate's own would cast what the model returns to bfloat16: the log-probs, and with them every ratio.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return None
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise ValueError(f"fsdp_version={version} cannot be used: responses are drawn from a model of fsdp_version: 2")
    dtype = torch.bfloat16 if config.bf16 else torch.float16 if config.fp16 else None
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=None if dtype is None else torch.float32)
    return FullyShardedDataParallelPlugin(fsdp_version=2, mixed_precision_policy=policy)


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
    # without temporaries; not under a loss scale, whose skipped steps accelerate cannot see then
    fused = not config.fp16
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=config.adam_epsilon, fused=fused)
