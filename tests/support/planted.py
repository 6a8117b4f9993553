"""Copies of the kernels in which one text is replaced, imported beside the right ones under a name of their own."""

import importlib
import itertools
import shutil
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
_count = itertools.count()


def planted(folder, file="", text="", broken=""):
    """The package with `broken` in place of `text`, which stands in `file` exactly once; unchanged without a file."""
    name = f"planted_kernels_{next(_count)}"
    package = Path(folder) / name
    shutil.copytree(
        ROOT / "kernels" / "policy_split_kernels", package, ignore=shutil.ignore_patterns("__pycache__", "*.so")
    )
    if file:
        source = (package / file).read_text()
        assert source.count(text) == 1, f"{source.count(text)} times in {file}: {text}"
        (package / file).write_text(source.replace(text, broken))
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))


def call_in_place(package, logits, targets):
    """Statistics of logits (1, N, V), which then become their gradient."""
    ops = importlib.import_module(f"{package.__name__}.ops")
    rows = (logits, targets, torch.ones(1, device="cuda"), None, None, None)
    _, entropy, row_max, log_sum = ops.logprobs_entropy(*rows)
    ops.logprobs_entropy_gradient_(
        *rows, row_max, log_sum, entropy, *(torch.ones_like(entropy) for _ in range(2)), None
    )


def call_loss_in_place(package, logits, targets):
    ops = importlib.import_module(f"{package.__name__}.ops")
    given = dict.fromkeys(argument.name for argument in ops.dual_mode_loss_with_gradient_._schema.arguments)
    ones = torch.ones(targets.shape, device="cuda")
    given |= dict.fromkeys(("advantages", "weights", "entropy_coef", "kl_coef"), ones)
    given |= {"logits": logits, "targets": targets, "inverse_temperature": torch.ones(1, device="cuda")}
    given |= {"surrogate": "clip", "clip_low": 0.2, "clip_high": 0.2, "sampler_cap": 2.0}
    ops.dual_mode_loss_with_gradient_(**(given | {"sapo_temperature": (1.0, 1.05), "use_bias_correction_kl": False}))
