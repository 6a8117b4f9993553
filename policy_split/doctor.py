"""policy-split doctor: what is installed here, what each missing piece costs, and whether the kernels compute right."""

import importlib
import json
import platform
import warnings
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import NamedTuple

import torch
from policy_split_kernels import backends, native_library
from policy_split_kernels.logprobs import logprobs_and_entropy

from .extras import EXTRAS

OK, MISSING, WRONG = "ok", "missing", "wrong"
TOLERANCE = 2e-5  # nats, of float32 statistics over 1000 tokens
# package -> what is not there without it
OPTIONAL = {
    "flash_attn": "no packed, padding-free batches by default; sdpa attention instead",
    "trl": "no policy_split.integrations.trl",
    "verl": "no policy_split.integrations.verl",
    "peft": "no LoRA",
    "reasoning_gym": "no reasoning-gym: tasks",
    "math_verify": "no math_reward",
    "matplotlib": "no `policy-split plot`, no `policy-split study`",
    "scipy": "no `policy-split study`",
    "tensorboard": "no --report_to tensorboard",
}
REQUIRED = ("transformers", "accelerate", "datasets", "safetensors", "numpy")


class Finding(NamedTuple):
    name: str
    status: str  # ok, missing or wrong
    found: str


def run(arguments: list[str]) -> int:
    """Print every finding; 0 if nothing is wrong (a missing option is not), else 1."""
    parser = ArgumentParser(prog="policy-split doctor", description=__doc__, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="The findings as JSON.")
    chosen = parser.parse_args(arguments)
    findings = list(examine())
    if chosen.json:
        print(json.dumps([finding._asdict() for finding in findings], indent=1))
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            print(f"{finding.status:7}  {finding.name:{width}}  {finding.found}")
    return int(any(finding.status == WRONG for finding in findings))


def examine() -> Iterator[Finding]:
    """Interpreter, packages, native library, GPUs, and the kernels against their specification."""
    yield Finding("python", OK, f"{platform.python_version()} on {platform.platform()}")
    yield _package("policy_split", "", "policy-split")
    yield Finding("torch", OK, f"{torch.__version__}, {torch.get_num_threads()} threads")
    yield _package("triton", "the kernels of GPUs; with a GPU, plain PyTorch serves, many times slower")
    for name in REQUIRED:
        yield _package(name, "needed by the trainer: reinstall policy-split", missing=WRONG)
    yield _native()
    yield from _gpus()
    for name, cost in OPTIONAL.items():
        command = f"pip install policy-split[{EXTRAS[name]}]" if name in EXTRAS else f"pip install {name}"
        yield _package(name, f"{cost}; {command}")
    yield Finding("backend", OK, f"{backends.get_backend()}: {backends.BACKENDS[backends.get_backend()]}")
    yield from _self_checks()


def _package(module: str, cost: str, name: str | None = None, missing: str = MISSING) -> Finding:
    """The version of a package that can be imported; what it raises if it cannot."""
    name = name or module.replace("_", "-")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module:
            return Finding(name, missing, cost)
        return Finding(name, WRONG, f"is installed but cannot be imported ({error}); {cost}")
    except Exception as error:  # a broken package raises what it likes
        return Finding(name, WRONG, f"is installed but cannot be imported ({type(error).__name__}: {error}); {cost}")
    try:
        return Finding(name, OK, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(name, OK, "importable, of no known version")


def _native() -> Finding:
    library = native_library.library()
    if library is None:
        return Finding("native library", MISSING, f"{native_library.why_missing()}; plain PyTorch, many times slower")
    return Finding("native library", OK, f"C++ kernels for {library.ps_instruction_set().decode()}")


def _gpus() -> Iterator[Finding]:
    if not torch.cuda.is_available():
        yield Finding("GPU", MISSING, "none that torch can use: everything runs on the CPU")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found = f"{properties.name}, compute capability {properties.major}.{properties.minor}"
        yield Finding(f"GPU {index}", OK, f"{found}, {properties.total_memory / 2**30:.0f} GiB")


def _self_checks() -> Iterator[Finding]:
    """Log-probs, entropies and their gradient by the chosen backend on each device, against float64 softmax."""
    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    for device in devices:
        yield _checked(f"kernels on {device}", lambda device=device: _largest_error(torch.device(device)))


def _checked(name: str, measure: Callable[[], float]) -> Finding:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            error = measure()
    except Exception as failed:
        return Finding(name, WRONG, f"{type(failed).__name__}: {failed}")
    found = f"largest difference from float64 {error:.1e} nats"
    return Finding(name, OK if error <= TOLERANCE else WRONG, found)


def _largest_error(device: torch.device) -> float:
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(7, 1000, generator=generator)).to(device).requires_grad_()
    targets = torch.arange(0, 700, 100, device=device)
    exact = logits.detach().double().requires_grad_()
    log_p = torch.log_softmax(exact, -1)
    truth = log_p.gather(-1, targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)
    ours = logprobs_and_entropy(logits, targets)
    gradients = [torch.autograd.grad(sum(x).sum(), y)[0] for x, y in ((ours, logits), (truth, exact))]
    pairs = [*zip(ours, truth, strict=True), tuple(gradients)]
    return max(float((a.detach().double() - b.detach()).abs().max()) for a, b in pairs)
