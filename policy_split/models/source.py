"""What a name or path of a model leads to, said by its own name where it is no model that can be loaded."""

import re
from pathlib import Path

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
WHOLE = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
ASKED = "a model is a folder with config.json, tokenizer and weights, a GGUF file, or a name on the Hugging Face hub"


def check_source(name: str) -> None:
    """Raises FileNotFoundError or ValueError, in one line, for a path that holds no model; a hub name is not asked for.

    A folder with a LoRA adapter is one: its base is loaded with it.
    """
    path = Path(name).expanduser()
    if gguf_file(name) is not None:
        return
    if path.is_file():
        raise ValueError(f"{name}: {_of_file(path)}")
    if path.is_dir():
        if (path / ADAPTER_CONFIG).is_file() and any((path / each).is_file() for each in WHOLE):
            raise ValueError(
                f"{name} holds a whole model and a LoRA adapter ({ADAPTER_CONFIG}), which would be loaded over it; "
                f"move the one that is not meant away"
            )
        if not (path / CONFIG).is_file() and not (path / ADAPTER_CONFIG).is_file():
            raise FileNotFoundError(f"{name}: {_of_folder(path)}")
    elif _is_path(name):
        raise FileNotFoundError(f"{name}: there is no such folder; {ASKED}")


def gguf_file(name: str) -> Path | None:
    """The GGUF file that it is, or that its folder holds, with no other weights; ValueError for a folder with several.

    A folder of the library's own format is that, whatever lies in it beside the weights.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path if _is_gguf(path) else None
    files = sorted(path.glob("*.gguf")) if path.is_dir() and not (path / ADAPTER_CONFIG).is_file() else []
    if not files or any(each.suffix in WEIGHTS for each in path.iterdir()):
        return None
    if len(files) > 1:
        names = ", ".join(each.name for each in files[:5])
        raise ValueError(f"{name} holds {len(files)} GGUF files; give one: {names}")
    return files[0]


def is_adapter(name: str) -> bool:
    """Whether it is a folder with a LoRA adapter."""
    return (Path(name) / ADAPTER_CONFIG).is_file()


def _is_path(name: str) -> bool:
    """Whether it can be no hub name, which is NAME or OWNER/NAME."""
    written_as_path = name.startswith((".", "/", "~")) or name.endswith((".gguf", *WEIGHTS))
    return written_as_path or not re.fullmatch(r"[^/]+(/[^/]+)?", name)


def _of_file(path: Path) -> str:
    if path.suffix in WEIGHTS:
        return f"a file of weights; give its folder, {path.absolute().parent}, if {CONFIG} is in it"
    return f"a file; {ASKED}"


def _of_folder(folder: Path) -> str:
    checkpoints = _checkpoints(folder) or _checkpoints(folder / "checkpoints")
    if checkpoints:
        return (
            f"there is no model in it (no {CONFIG}); a run has one when it has ended; "
            f"its newest checkpoint is one too: {checkpoints[-1]}"
        )
    if (folder / "manifest.json").is_file() and (folder / "progress.json").is_file():
        return (
            f"a checkpoint of an earlier version, which has no {CONFIG}; resume its run with --resume, "
            f"and the model is written when it ends"
        )
    if (folder / "metrics.jsonl").is_file():
        return f"there is no model in it (no {CONFIG}); a run has one when it has ended"
    if any(folder.glob("*.distcp")) or any(folder.glob("*_optim_states.pt")) or any(folder.glob("global_step*")):
        return "it holds a sharded checkpoint of another trainer; convert it with that trainer's own tool first"
    if (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file():
        return "a dataset, which --dataset takes"
    weights = sorted(path.name for path in folder.iterdir() if path.suffix in WEIGHTS)
    if weights:
        return f"weights ({weights[0]}) without a {CONFIG}: copy that of the model they belong to into the folder"
    inside = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
    if inside:
        return f"there is no {CONFIG} in it, but in {', '.join(inside[:3])}, a folder inside"
    return f"there is no model in it (no {CONFIG}); {ASKED}"


def _checkpoints(folder: Path) -> list[Path]:
    """Those that can be loaded, the newest last."""
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    found = [path for path in found if (path / CONFIG).is_file() or (path / ADAPTER_CONFIG).is_file()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def _is_gguf(path: Path) -> bool:
    with open(path, "rb") as file:
        return path.suffix == ".gguf" or file.read(4) == b"GGUF"
