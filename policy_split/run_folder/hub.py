"""Pushing a saved model to the Hugging Face Hub; what would keep it from going there is found before the run."""

from collections.abc import Iterable
from pathlib import Path

import huggingface_hub

from .model_folder import CARD


def check_hub(name: str, private: bool | None, *, create: bool) -> str:
    """The whole name of the repository, OWNER/NAME; it is made if create is true and it is not there.

    OSError in one line where nobody is logged in, the Hub does not answer, or it refuses the repository.
    """
    try:
        api = huggingface_hub.HfApi()
        owner = api.whoami()["name"]
        repository = name if "/" in name else f"{owner}/{name}"
        if create:
            repository = str(api.create_repo(repository, private=private, exist_ok=True).repo_id)
        return repository
    except Exception as error:  # of huggingface_hub and of what it asks the network with
        raise OSError(
            f"push_to_hub=True: {name} cannot be pushed to the Hub ({_line(error)}); log in with hf auth login or "
            f"HF_TOKEN, where there is a network, or leave push_to_hub out"
        ) from error


def push(repository: str, folder: Path, names: Iterable[str]) -> str:
    """Push those files of a folder, and its README.md; returns the address. OSError says how to push them later."""
    wanted = sorted({*names, CARD})
    try:
        return str(
            huggingface_hub.HfApi().upload_folder(
                repo_id=repository,
                folder_path=folder,
                allow_patterns=wanted,
                commit_message="Model trained by policy-split",
            )
        )
    except Exception as error:
        included = " ".join(f"--include {name}" for name in wanted)
        raise OSError(
            f"{repository}: the model could not be pushed ({_line(error)}); it is saved, and goes there by hf upload "
            f"{repository} {folder} . {included}"
        ) from error


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
