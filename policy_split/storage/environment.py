"""Where and with what a run was made: versions, machine and command, for environment.json."""

import os
import platform
import sys
from datetime import datetime, timezone
from importlib import metadata
from typing import Any

import torch

PACKAGES = ("policy-split", "torch", "triton", "transformers", "accelerate", "datasets", "safetensors", "numpy")


def environment() -> dict[str, Any]:
    """Versions of Python and of the packages that a result depends on (None: not installed), machine and command."""
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": list(sys.argv),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "machine": {
            "system": platform.platform(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
    }


def _version(name: str) -> str | None:
    if name == "torch":
        return str(torch.__version__)  # with what it was built for, which its metadata may leave out
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
