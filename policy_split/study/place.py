"""Where the pieces of a study lie, and how one is written: as a whole or not at all."""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PreTrainedModel

from policy_split.models.policy import placed
from policy_split.storage.whole_folder import ASIDE, publish

SPEC, EVALUATION, WARM_START = "spec.json", "evaluation.json", "warm-start"
TRAINED = "config.json"  # of the model, in the folder of a run that has done its steps
MODEL, TRAIN, QUESTIONS = "model", "train", "questions"  # in the folder of the common start
QUESTIONS_SEED = 1  # every run answers the same questions
WARM_START_SEED = 1  # and starts from the same weights


def once(folder: Path, save: Callable[[Path], object]) -> None:
    """Let `save` fill the folder unless it is there: as a whole or not at all."""
    if folder.is_dir():
        return
    aside = folder.with_name(f"{ASIDE}{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    save(aside)
    publish(aside, folder)


def on_device(model: PreTrainedModel) -> PreTrainedModel:
    return placed(model, "cuda" if torch.cuda.is_available() else "cpu")
