"""Writes the kernels as a repository of Hugging Face's Kernel Hub: build/torch-universal, Python and Triton alone.

python scripts/hub_layout.py FOLDER

What is loaded from there stands alone and beside an installed policy-split: its torch operations have a namespace of
their own, made of the sources. It has no C++ library: on a CPU plain PyTorch serves.
Layout: https://huggingface.co/docs/kernels/kernel-requirements.
"""

import hashlib
import json
import shutil
import sys
from pathlib import Path

NAME = "policy_split_kernels"
KERNELS = Path(__file__).parents[1] / "kernels" / NAME
PUBLIC = {
    "backends": ("get_backend", "set_backend"),
    "divergence": ("ModeDivergence", "mode_divergence"),
    "linear": ("TokenLossOutput", "linear_logprobs_and_entropy", "linear_logprobs_entropy_lse", "linear_token_loss"),
    "logprobs": ("LogprobsAndEntropy", "LogprobsEntropyLse", "logprobs_and_entropy", "logprobs_entropy_lse"),
}
NAMESPACE = '_own_library("policy_split")'  # of the operations, in ops.py
ENTRY = '''"""Log-probs, entropy and divergences straight from logits or hidden states: kernels of policy-split."""

{imports}

__all__ = [
{names}
]
'''
# of earlier versions of the `kernels` package, which look for a folder of the kernel's name
FOLDER_ENTRY = '''"""The package one folder up, for earlier versions of the `kernels` package."""

import importlib.util
import sys
from pathlib import Path

_path = Path(__file__).parents[1] / "__init__.py"
_spec = importlib.util.spec_from_file_location("{id}", _path)
_module = sys.modules.setdefault("{id}", importlib.util.module_from_spec(_spec))
if not hasattr(_module, "__all__"):
    _spec.loader.exec_module(_module)
__all__ = _module.__all__
globals().update({{name: getattr(_module, name) for name in __all__}})
'''


def write(folder: Path) -> Path:
    """The variant's folder; what was there is replaced."""
    paths = sorted(KERNELS.rglob("*.py"))
    sources = {path.relative_to(KERNELS).as_posix(): path.read_text(encoding="utf-8") for path in paths}
    digest = hashlib.sha256("".join(sources.values()).encode()).hexdigest()[:10]
    identity = f"_{NAME}_{digest}"
    if sources["ops.py"].count(NAMESPACE) != 1:
        raise RuntimeError(f"ops.py does not name the namespace of its operations by {NAMESPACE} in one place")
    sources["ops.py"] = sources["ops.py"].replace(NAMESPACE, f'_own_library("{identity}")')
    imports = "\n".join(f"from .{module} import {', '.join(names)}" for module, names in PUBLIC.items())
    names = "\n".join(f'    "{name}",' for group in PUBLIC.values() for name in group)
    sources["__init__.py"] = ENTRY.format(imports=imports, names=names)
    sources[f"{NAME}/__init__.py"] = FOLDER_ENTRY.format(id=identity)
    metadata = {"id": identity, "name": NAME.replace("_", "-"), "version": 1, "license": "Apache-2.0"}
    metadata |= {"python-depends": [], "backend": {"type": "cuda"}}
    sources["metadata.json"] = json.dumps(metadata, indent=2) + "\n"
    variant = folder / "build" / "torch-universal"
    shutil.rmtree(variant, ignore_errors=True)
    for name, text in sources.items():
        (variant / name).parent.mkdir(parents=True, exist_ok=True)
        (variant / name).write_text(text, encoding="utf-8")
    return variant


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    print(write(Path(sys.argv[1])))
