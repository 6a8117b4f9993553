"""A folder in Hugging Face's format, for `from_pretrained`: what belongs to a model, written and replaced together."""

import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers.dynamic_module_utils import custom_object_save

from policy_split.models.adapters import describe_adapter, is_adapted
from policy_split.progress import progress_bars
from policy_split.storage.whole_folder import ASIDE, sync

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"  # a folder with one of them holds a model
SPLIT, CARD, PLOT = "policy_split.json", "README.md", "model_card.png"
MARK = "<!-- Written by policy-split, and again whenever the model is; take this line away to keep your changes. -->"
# whatever of it is left of another model would be read together with the new one, or in its place
MODEL_FILES = re.compile(
    r"config\.json|generation_config\.json"
    r"|model\.safetensors(\.index\.json)?|model-\d{5}-of-\d{5}\.safetensors"
    r"|adapter_config\.json|adapter_model\.safetensors"
    r"|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json|chat_template\.(jinja|json)"
    r"|vocab\.(json|txt)|merges\.txt|(tokenizer|spiece|sentencepiece\.bpe)\.model"
    r"|policy_split\.json|model_card\.png"
)


def model_files(folder: Path) -> list[Path]:
    """The files of a model and its tokenizer in a folder; others are somebody's own."""
    found = [path for path in folder.glob("*") if path.is_file() and MODEL_FILES.fullmatch(path.name)]
    return sorted(found + ([folder / CARD] if (folder / CARD).is_file() and is_own_card(folder) else []))


def is_own_card(folder: Path) -> bool:
    """Whether the folder's README.md is ours, or there is none: that of somebody else stays."""
    path = folder / CARD
    return not os.path.lexists(path) or (path.is_file() and MARK in path.read_text(encoding="utf-8", errors="replace"))


def holds_model(folder: Path) -> bool:
    return (folder / CONFIG).is_file() or (folder / ADAPTER_CONFIG).is_file()


def save_pretrained(
    accelerator: Accelerator, model: Any, tokenizer: Any, folder: Path, add: Callable[[Path], None] | None = None
) -> list[str]:
    """Model and tokenizer in Hugging Face's format, and what `add` writes beside them; each file replaced as a whole.

    Returns the names of what it has written, in the main process.

    What is left of an earlier model goes first, its config before all else: a process that is killed on the way leaves
    a folder without a model, never one of two models.
    """
    written: list[str] = []
    state = accelerator.get_state_dict(model)
    bare = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    if accelerator.is_main_process:
        unfinished = folder / f"{ASIDE}model"
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            write_model(bare, state, tokenizer, unfinished)
            if add is not None:
                add(unfinished)
            written = sorted(path.name + "/*" * path.is_dir() for path in unfinished.iterdir())
            replace_model(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    accelerator.wait_for_everyone()
    return written


def write_model(model: Any, state: dict[str, Any] | None, tokenizer: Any, folder: Path) -> None:
    """Model and tokenizer into a new folder; state: the whole weights of a model that is sharded."""
    folder.mkdir(parents=True)
    with progress_bars(sys.stderr.isatty()):
        model.save_pretrained(folder, state_dict=state)
    (folder / "README.md").unlink(missing_ok=True)  # peft's, which says nothing
    tokenizer.save_pretrained(folder)


def replace_model(new: Path, folder: Path) -> None:
    """Move the files of a model into a folder, in place of those of another."""
    for path in new.rglob("*"):
        if path.is_file():
            sync(path)
    for path in sorted(model_files(folder), key=_configs_first):
        path.unlink()
    sync(folder)
    for path in sorted(new.iterdir(), key=_configs_first, reverse=True):
        if path.is_dir():
            shutil.rmtree(folder / path.name, ignore_errors=True)
        os.replace(path, folder / path.name)
    sync(folder)


def describe_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """What `from_pretrained` needs besides weights: config, generation config and tokenizer."""
    if is_adapted(model):
        describe_adapter(model, folder)
    else:
        model.config.dtype = str(model.dtype).removeprefix("torch.")
        model.config.architectures = [type(model).__name__.removeprefix("FSDP")]
        if model._auto_class is not None:
            custom_object_save(model, folder, config=model.config)
        model.config.save_pretrained(folder)
        if model.can_generate():
            model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _configs_first(path: Path) -> tuple[bool, str]:
    return path.name not in (CONFIG, ADAPTER_CONFIG), path.name
