"""Tests on each Python that we promise, with the oldest and the newest of what pyproject.toml names: make test-pythons.

    python scripts/test_pythons.py [3.10-oldest ...] [--keep]

One environment at a time, in build/pythons: with a CUDA build of PyTorch it takes 6 GB, and it is deleted afterwards.
The last lines are a table of what was installed and what came out; anything that failed is the exit status.
"""

import argparse
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import tomllib

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = ROOT / "build" / "pythons"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
COMBINATIONS = [f"{python}-{age}" for python in PYTHONS for age in ("oldest", "newest")]
PACKAGES = ("torch", "triton", "transformers", "accelerate")  # whose oldest is taken everywhere
EVERY_OLDEST = "3.10-oldest"  # of all dependencies, on the one Python that has a wheel of each
RUNNERS = ("pytest>=8.2", "pytest-timeout>=2.3", "pytest-xdist>=3.6", "hypothesis>=6.100", "peft>=0.17")
TESTS = (
    "kernels/test_ops.py", "kernels/test_statistics.py", "kernels/test_divergence.py", "kernels/test_jensen_shannon.py",
    "kernels/test_options.py", "kernels/test_transforms.py", "kernels/test_linear_input.py",
    "losses/test_loss.py", "losses/test_loss_gradients.py", "losses/test_surrogates.py", "losses/test_loss_input.py",
    "algorithms", "models", "training/test_trainer.py", "training/test_trainer_update.py",
)  # fmt: skip


def lower_bounds() -> dict[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = (re.match(r"([\w-]+)>=([\d.]+)", line) for line in project["dependencies"])
    return {match[1]: match[2] for match in found if match}


def requirements(combination: str) -> list[str]:
    """What pip is held to, beside the package itself; the newest are what pip takes by itself."""
    if combination.endswith("newest"):
        return []
    bounds = lower_bounds()
    names = bounds if combination == EVERY_OLDEST else PACKAGES
    return [f"{name}=={bounds[name]}" for name in names]


def interpreter(version: str) -> str:
    found = subprocess.run([ROOT / "scripts" / "find_python.sh", version], check=True, capture_output=True, text=True)
    return found.stdout.strip()


def installed(python: Path) -> list[str]:
    """Versions of Python and of PACKAGES."""
    code = f"import importlib.metadata as m, platform as p; print(p.python_version(), *map(m.version, {PACKAGES}))"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.split()


def build(combination: str) -> Path:
    folder = ENVIRONMENTS / combination
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([interpreter(combination.split("-")[0]), "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--upgrade", "pip"], check=True)
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "-e", ROOT, *RUNNERS, *requirements(combination)], check=True, cwd=ROOT
    )
    return python


def tried(combination: str, keep: bool) -> list[str]:
    """A row of the table."""
    try:
        python = build(combination)
    except subprocess.CalledProcessError:
        return [combination, *["-"] * (len(PACKAGES) + 1), "cannot be installed"]
    files = [f"tests/{name}" for name in TESTS]
    command = [python, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", *files]
    result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(result.stdout, flush=True)
    row = [combination, *installed(python), result.stdout.strip().splitlines()[-1].strip("= ")]
    if not keep:
        shutil.rmtree(python.parents[1])
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("combinations", nargs="*", metavar="PYTHON-AGE", help=", ".join(COMBINATIONS))
    parser.add_argument("--keep", action="store_true", help="do not delete the environments: 6 GB each")
    given = parser.parse_args()
    unknown = sorted(set(given.combinations) - set(COMBINATIONS))
    if unknown:
        parser.error(f"{', '.join(unknown)}: expected some of {', '.join(COMBINATIONS)}")
    rows = []
    for combination in given.combinations or COMBINATIONS:
        print(f"== {combination}", flush=True)
        rows.append(tried(combination, given.keep))
    print(f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {platform.system()}")
    for row in (["combination", "Python", *PACKAGES, "tests"], ["-"] * (len(PACKAGES) + 3), *rows):
        print(f"| {' | '.join(row)} |")
    return any(not re.match(r"\d+ passed", row[-1]) or "failed" in row[-1] for row in rows)


if __name__ == "__main__":
    sys.exit(main())
