"""policy-split export RUN: the model of a run, or of one of its checkpoints, as a folder of its own."""

import argparse
import shutil
from pathlib import Path

from policy_split.config import PolicySplitConfig
from policy_split.models.adapters import is_adapted, merged
from policy_split.models.policy import load_model, load_tokenizer
from policy_split.models.source import check_source
from policy_split.run_folder.checkpoints import CHECKPOINTS
from policy_split.run_folder.model_folder import holds_model, replace_model, write_model
from policy_split.run_folder.output_dir import check_writable
from policy_split.run_folder.record import read_settings
from policy_split.storage.whole_folder import ASIDE

HELP = """Write the model and the tokenizer of a run, a checkpoint or any model's folder into a folder of their own, for
transformers, vLLM and others. With --merge a LoRA adapter is added to the weights of its base: a whole model."""


def run(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="policy-split export", description=HELP)
    parser.add_argument("model", metavar="RUN", help="Folder of a run, a checkpoint or a model.")
    parser.add_argument("--merge", action="store_true", help="Add the LoRA adapter to the weights of its base.")
    parser.add_argument("--output", metavar="FOLDER", help="Where to write. Not given: RUN/merged, or RUN/exported.")
    parser.add_argument("--overwrite", action="store_true", help="Replace a model that is there.")
    parser.add_argument(
        "--model_dtype", "--model-dtype", help="Of the weights. Not given: that of the run, or that of the model."
    )
    chosen = parser.parse_args(arguments)
    check_source(chosen.model)
    output = Path(chosen.output or Path(chosen.model) / ("merged" if chosen.merge else "exported"))
    if holds_model(output) and not chosen.overwrite:
        raise FileExistsError(f"--output {output}: there is a model already; choose another folder, or --overwrite")
    check_writable(output)
    tokenizer = load_tokenizer(None, chosen.model)
    model = load_model(chosen.model, PolicySplitConfig(model_dtype=chosen.model_dtype or _dtype(chosen.model)))
    if chosen.merge:
        if not is_adapted(model):
            raise ValueError(f"{chosen.model}: a whole model already, there is no LoRA adapter to merge")
        model = merged(model)
    unfinished = output / f"{ASIDE}model"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        write_model(model, None, tokenizer, unfinished)
        replace_model(unfinished, output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(f"model: {output.absolute()}")
    return 0


def _dtype(name: str) -> str:
    """In which a run has trained; what it has saved is in that."""
    folder = Path(name)
    if folder.absolute().parent.name == CHECKPOINTS:
        folder = folder.parent.parent
    dtype = (read_settings(folder) or {}).get("model_dtype", "auto")
    return dtype if isinstance(dtype, str) else "auto"
