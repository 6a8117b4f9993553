"""Models from GGUF files, as transformers reads them: dequantized, ended as their chat template ends a turn."""

import io
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from policy_split.config import PolicySplitConfig
from policy_split.extras import check_extra, import_extra
from policy_split.progress import progress_bars
from policy_split.storage.whole_folder import ASIDE, damage, digest, publish, remove, seal

BASE_MODEL, ORIGIN = "base_model", "gguf.json"  # in a run's folder; in that one, what it was made of
LINK = "model.gguf"
ANSWER = "Certainly"
INSTEAD = "give the folder of the model that it was made of"


def read_tokenizer(path: Path) -> Any:
    """The file's tokenizer, its special tokens put right and named on stderr; ValueError or ImportError in one line."""
    tokenizer, changed = _tokenizer(path)
    for each in changed:
        print(f"{path}: {each}", file=sys.stderr)
    return tokenizer


def read_model(path: Path, config: PolicySplitConfig, tokenizer: Any = None) -> PreTrainedModel:
    """The file's model in config.model_dtype, free of its quantization, ended by the file's (or that) tokenizer."""
    tokenizer = _tokenizer(path)[0] if tokenizer is None else tokenizer
    with _reading(path) as folder:
        read: Any = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=LINK, dtype=config.model_dtype, output_loading_info=True
        )
    loaded, found = read
    absent = sorted({*found["missing_keys"], *(str(key[0]) for key in found["mismatched_keys"])})
    if absent:
        raise ValueError(
            f"{path}: {len(absent)} weights of the {type(loaded).__name__} are not in this GGUF file "
            f"({', '.join(absent[:3])}); a part of a split file has to be merged with the others first"
        )
    described = loaded.config
    described.__dict__.pop("quantization_config", None)  # transformers refuses to save what it has read from GGUF
    described._name_or_path = str(path)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        described, dtype=loaded.dtype, attn_implementation=config.attn_implementation
    )
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    for each in (model.config, model.generation_config):
        ends = each.eos_token_id if isinstance(each.eos_token_id, (list, tuple)) else [each.eos_token_id]
        if tokenizer.eos_token_id not in ends:
            each.eos_token_id = tokenizer.eos_token_id
        each.pad_token_id = tokenizer.pad_token_id
    model.eval()
    return model


def converted(path: Path, folder: Path, config: PolicySplitConfig, *, replace: bool) -> str:
    """The folder with the file's model in Hugging Face's format, written unless it is there; stderr says which.

    FileExistsError: the folder is something else, or, unless replace, that of another file or dtype.
    """
    origin = {"sha256": digest(path), "model_dtype": config.model_dtype}
    if folder.exists():
        former = _origin(folder)
        if former is None:
            raise FileExistsError(f"{folder} is in the way of the model that {path} holds; choose another output_dir")
        same = all(former.get(name) == value for name, value in origin.items())
        if not same and not replace:
            raise FileExistsError(
                f"{folder} was made of {former.get('file')} in {former.get('model_dtype')}, not of {path} in "
                f"{config.model_dtype}; choose another output_dir, or set overwrite_output_dir=True"
            )
        if same and damage(folder) is None:
            print(f"{path}: its model is in {folder}, converted before", file=sys.stderr)
            return str(folder)
    print(f"{path}: its model is being converted into {folder}, once", file=sys.stderr)
    tokenizer = read_tokenizer(path)
    model = read_model(path, config, tokenizer)
    unfinished = folder.with_name(f"{ASIDE}{folder.name}")
    if unfinished.exists():
        remove(unfinished)
    unfinished.mkdir(parents=True)
    with progress_bars(sys.stderr.isatty()):
        model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    about = {"file": str(path.absolute()), **origin, "transformers": transformers.__version__}
    (unfinished / ORIGIN).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    seal(unfinished)
    publish(unfinished, folder)
    print(f"{path}: it is there, dequantized to {model.dtype}", file=sys.stderr)
    return str(folder)


def kept_conversion(name: str, folder: Path, config: PolicySplitConfig) -> str | None:
    """The folder, if it holds the model of a file of that name, or of the file in a folder of that name, that is not
    there any more; stderr says so.

    ValueError: it is damaged, or of another dtype, and without the file it cannot be made again.
    """
    former, path = _origin(folder), Path(name).expanduser().absolute()
    file = Path(str((former or {}).get("file")))
    if former is None or path.exists() or path not in (file, file.parent):
        return None
    wrong = damage(folder)
    if former.get("model_dtype") != config.model_dtype:
        wrong = f"it was converted in {former.get('model_dtype')}, and model_dtype={config.model_dtype!r} is asked for"
    if wrong:
        raise ValueError(f"{name} is not there, and its model in {folder} cannot stand for it: {wrong}")
    print(f"{name} is not there any more: its model is in {folder}, converted before", file=sys.stderr)
    return str(folder)


def is_converted(folder: Path) -> bool:
    """Whether `converted` has written it."""
    return _origin(folder) is not None


def set_special_tokens(tokenizer: Any) -> list[str]:
    """Make eos what ends the assistant's turn in the chat template, and pad a token; what has changed, in words."""
    changed, end = [], end_of_turn(tokenizer)
    if end is not None and end != tokenizer.eos_token:
        former, tokenizer.eos_token = tokenizer.eos_token, end
        changed.append(f"eos_token is now {end!r}, which ends a turn in its chat template, instead of {former!r}")
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
        changed.append(f"pad_token is now {tokenizer.eos_token!r}; it had none")
    return changed


def end_of_turn(tokenizer: Any) -> str | None:
    """The special token behind an assistant's message as the chat template renders it; None if there is none."""
    if not tokenizer.chat_template:
        return None
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": ANSWER}]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception:  # whatever a template raises: the prompts of the datasets, rendered next, will say it
        return None
    _, answered, rest = text.rpartition(ANSWER)
    tokens = [token for token in tokenizer.tokenize(rest.strip()) if token.strip("▁")] if answered else []
    if not tokens or not rest.strip().startswith(tokens[0]):
        return None
    special = {str(token) for token in tokenizer.added_tokens_decoder.values()} | set(tokenizer.all_special_tokens)
    return tokens[0] if tokens[0] in special or re.fullmatch(r"<.+>|\[.+\]", tokens[0]) else None


def _tokenizer(path: Path) -> tuple[Any, list[str]]:
    with _reading(path) as folder:
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=LINK)
    tokenizer.name_or_path = str(path)
    return tokenizer, set_special_tokens(tokenizer)


@contextmanager
def _reading(path: Path) -> Iterator[str]:
    """A folder with nothing but the file, as LINK: config or tokenizer files beside it belong to something else."""
    check_extra("gguf", f"{path}, a GGUF file,")
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{path}: not a GGUF file: it does not begin with the letters GGUF")
    silent = sys.stderr if sys.stderr.isatty() else io.StringIO()  # transformers' bar, which cannot be turned off
    verbosity = logging.get_verbosity()
    with tempfile.TemporaryDirectory(prefix="policy-split-gguf-") as folder, redirect_stderr(silent):
        (Path(folder) / LINK).symlink_to(path.absolute())
        logging.set_verbosity_error()
        try:
            yield folder
        except Exception as error:  # gguf and numpy raise whatever the bytes lead to
            raise ValueError(f"{path}: {_fault(path, error)}") from error
        finally:
            logging.set_verbosity(verbosity)


def _fault(path: Path, error: Exception) -> str:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
    try:
        architecture = import_extra("gguf", str(path)).GGUFReader(path).fields["general.architecture"].contents()
    except Exception:
        return f"the GGUF file is broken or cut short ({reason})"
    version = f"transformers {transformers.__version__}"
    if "not supported yet" in reason or "Unknown gguf model_type" in reason:
        return f"a GGUF file of architecture {architecture!r}, which {version} cannot read; {INSTEAD}"
    return f"{version} cannot read this GGUF file of architecture {architecture!r} ({reason}); {INSTEAD}"


def _origin(folder: Path) -> dict[str, Any] | None:
    try:
        read = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return read if isinstance(read, dict) else None
