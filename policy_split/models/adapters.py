"""LoRA by the package peft: an adapter is added to a model, loaded with its base, saved alone, merged into it."""

import copy
import difflib
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from policy_split.config import PolicySplitConfig
from policy_split.extras import import_extra

PATTERN = set(".*+?[](){}|^$\\")  # of which a regular expression has at least one, and a module's name none but a dot


def is_adapted(model: nn.Module) -> bool:
    """Whether it is a PeftModel; of peft nothing is imported to find out."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


def add_adapter(model: PreTrainedModel, config: PolicySplitConfig) -> Any:
    """The PeftModel of config's LoRA settings, its first weights a function of config.seed.

    ImportError without peft; ValueError for a model that has an adapter, and for target modules that are not in it.
    """
    peft = import_extra("peft", "use_peft=True")
    if is_adapted(model):
        raise ValueError(
            "use_peft=True adds an adapter to a model that has one; train that one without it, or merge it first"
        )
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=_targets(model, "lora_target_modules", config.lora_target_modules),
        modules_to_save=_named(model, "lora_modules_to_save", config.lora_modules_to_save),
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
    )
    device = model.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        try:
            with _names_of_then():
                made = peft.get_peft_model(model, settings)
        except ValueError as error:
            raise ValueError(f"use_peft=True: {error}; name them by lora_target_modules, such as all-linear") from error
    name = model.name_or_path
    settings.base_model_name_or_path = str(Path(name).absolute()) if name and Path(name).exists() else name or None
    return made


def base_of(folder: str) -> str:
    """Name or path of the model that an adapter was made for; ValueError if it does not say."""
    peft = import_extra("peft", f"{folder}: a LoRA adapter")
    name = peft.PeftConfig.from_pretrained(folder).base_model_name_or_path
    if not name:
        raise ValueError(
            f"{folder}: a LoRA adapter that does not say which model it is for; write that model's name or path as "
            f"base_model_name_or_path into its adapter_config.json"
        )
    beside = Path(folder) / name
    return str(beside) if not Path(name).exists() and beside.exists() else name


def load_adapter(base: PreTrainedModel, folder: str) -> Any:
    """The PeftModel of the folder's adapter over its base; the adapter trains, the base does not."""
    peft = import_extra("peft", f"{folder}: a LoRA adapter")
    with _names_of_then():
        return peft.PeftModel.from_pretrained(base, folder, is_trainable=True)


def check_adapter(model: Any) -> None:
    """ValueError for what would be lost when the adapter alone is saved."""
    if len(model.peft_config) != 1:
        raise ValueError(
            f"the model has {len(model.peft_config)} adapters, {', '.join(model.peft_config)}; expected one"
        )
    kept = {tensor.data_ptr() for tensor in adapter_state(model).values()}
    lost = [name for name, each in model.named_parameters() if each.requires_grad and each.data_ptr() not in kept]
    if lost:
        raise ValueError(
            f"{len(lost)} parameters train that an adapter does not hold, such as {lost[0]}; freeze them, or name "
            f"their module in lora_modules_to_save"
        )


def adapter_state(model: Any) -> dict[str, torch.Tensor]:
    """The adapter's weights under the names of its file; they are the model's own memory."""
    peft = import_extra("peft", "a model with an adapter")
    state: dict[str, torch.Tensor] = peft.get_peft_model_state_dict(
        model, adapter_name=model.active_adapter, save_embedding_layers=False
    )
    return state


def describe_adapter(model: Any, folder: Path) -> None:
    """Write adapter_config.json."""
    settings = copy.deepcopy(model.peft_config[model.active_adapter])
    settings.inference_mode = True
    settings.save_pretrained(str(folder))


@contextmanager
def without_adapter(model: Any) -> Iterator[None]:
    """The model as it was before `add_adapter`."""
    with model.disable_adapter():
        yield


def merged(model: Any) -> PreTrainedModel:
    """A whole model of its own, the adapter added to the weights; ValueError where that gives no finite weights."""
    whole: PreTrainedModel = copy.deepcopy(model).merge_and_unload(safe_merge=True)
    return whole


def set_adapter_dropout(model: nn.Module, active: bool) -> None:
    """Of the adapter alone: every other dropout of the model stays off."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and ".lora_dropout." in f".{name}.":
            module.train(active)


@contextmanager
def _names_of_then() -> Iterator[None]:
    """peft asks transformers for attributes by names that it is about to drop: nothing a user could mend."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is deprecated", category=FutureWarning)
        yield


def _targets(model: nn.Module, setting: str, names: list[str] | None) -> Any:
    if names is None or names == ["all-linear"]:
        return names and "all-linear"
    if len(names) == 1 and set(names[0]) & (PATTERN - {"."}):
        return names[0]
    return _named(model, setting, names)


def _named(model: nn.Module, setting: str, names: list[str] | None) -> list[str] | None:
    """The names themselves; ValueError for one that no module of the model ends with."""
    there = [name for name, _ in model.named_modules() if name]
    for wanted in names or ():
        if not any(name == wanted or name.endswith(f".{wanted}") for name in there):
            last = sorted({name.rpartition(".")[2] for name in there} - {str(number) for number in range(1000)})
            near = difflib.get_close_matches(wanted, last, 1)
            meant = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(last)}"
            raise ValueError(f"{setting}: the model has no module {wanted!r}{meant}")
    return None if names is None else list(names)
