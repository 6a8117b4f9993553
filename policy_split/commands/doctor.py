"""policy-split doctor: what is installed here, what each missing piece costs, and whether the kernels compute right."""

import contextlib
import importlib
import importlib.util
import json
import os
import platform
import sys
import warnings
from argparse import ArgumentParser
from collections.abc import Iterator
from importlib import metadata
from typing import NamedTuple

import torch

from policy_split.extras import EXTRAS
from policy_split_kernels import backends
from policy_split_kernels.cpu import library
from policy_split_kernels.logprobs import logprobs_and_entropy

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
    "matplotlib": "no `policy-split plot`, `report --static`, `study`",
    "tensorboard": "no --report_to tensorboard",
}
# after the command of pip; flash-attn's build imports the torch that is there
FLAGS = {"flash_attn": " --no-build-isolation"}
CHECK = "kernels on "  # how the names of the self-check begin
REQUIRED = ("transformers", "accelerate", "datasets", "safetensors", "numpy", "scipy", "jinja2", "plotly")


class Finding(NamedTuple):
    name: str
    status: str  # ok, missing or wrong
    found: str


def run(arguments: list[str]) -> int:
    """Print every finding; 0 if the self-check passes, whatever else is missing or broken, else 1."""
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
    return int(any(finding.status == WRONG for finding in findings if finding.name.startswith(CHECK)))


def examine() -> Iterator[Finding]:
    """Interpreter, packages, native library, GPUs, and the kernels against their specification."""
    yield Finding("python", OK, f"{platform.python_version()} on {platform.platform()}")
    yield _package("policy_split", "", "policy-split")
    yield Finding("torch", OK, f"{torch.__version__}, {torch.get_num_threads()} threads")
    yield _package("triton", "no kernels for GPUs, where plain PyTorch serves, more slowly; pip install triton")
    yield _interpreter()
    for name in REQUIRED:
        yield _package(name, "needed by the trainer: reinstall policy-split", missing=WRONG)
    yield _native()
    yield from _gpus()
    for name, cost in OPTIONAL.items():
        wanted = f"'policy-split[{EXTRAS[name]}]'" if name in EXTRAS else name
        yield _package(name, f"{cost}; pip install {wanted}{FLAGS.get(name, '')}")
    yield from _self_checks()


def _package(module: str, cost: str, name: str | None = None, missing: str = MISSING) -> Finding:
    """The version of a package that can be imported; what it raises if it cannot."""
    name = name or module.replace("_", "-")
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):  # --json is alone on stdout
            warnings.simplefilter("ignore")
            importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a broken package raises what it likes
        if isinstance(error, ModuleNotFoundError) and error.name == module:
            return Finding(name, missing, cost)
        said = " ".join(f"{type(error).__name__}: {error}".split())
        return Finding(name, WRONG, f"is installed but cannot be imported ({said}); {cost}")
    try:
        return Finding(name, OK, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(name, OK, "importable, of no known version")


def _interpreter() -> Finding:
    on = os.environ.get("TRITON_INTERPRET") == "1"
    return Finding("triton's interpreter", OK, "on (TRITON_INTERPRET=1), for tests alone" if on else "off")


def _native() -> Finding:
    native = library.opened()
    if native is None:
        return Finding("native library", MISSING, f"{library.why_missing()}; plain PyTorch, many times slower")
    found = f"C++ kernels for {native.ps_instruction_set().decode()}"
    chosen = os.environ.get("POLICY_SPLIT_BACKEND", "auto")
    unused = "" if chosen in ("auto", "native") else f", not used: POLICY_SPLIT_BACKEND={chosen}"
    return Finding("native library", OK, found + unused)


def _gpus() -> Iterator[Finding]:
    if not torch.cuda.is_available():
        yield Finding("GPU", MISSING, "none that torch can use: everything runs on the CPU")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found = f"{properties.name}, compute capability {properties.major}.{properties.minor}"
        yield Finding(f"GPU {index}", OK, f"{found}, {properties.total_memory / 2**30:.0f} GiB")


def _self_checks() -> Iterator[Finding]:
    """Log-probs, entropies and their gradient against float64, by the chosen backend and by all that are there."""
    for device in ("cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))):
        yield _checked(device, None)
        for name in _available(device):
            yield _checked(device, name)


def _available(device: str) -> Iterator[str]:
    """The backends that can compute on this device."""
    yield "torch"
    if device == "cpu" and library.opened() is not None:
        yield "native"
    compiled = device != "cpu" or os.environ.get("TRITON_INTERPRET") == "1"
    if compiled and importlib.util.find_spec("triton") is not None:
        yield "triton"


def _checked(device: str, backend: str | None) -> Finding:
    """One backend on one device; None: what a user gets, by set_backend, POLICY_SPLIT_BACKEND or "auto"."""
    name = f"{CHECK}{device}" + (f", {backend}" if backend else "")
    try:
        with warnings.catch_warnings(), _chosen(backend):
            warnings.simplefilter("ignore")
            error = _largest_error(torch.device(device))
            used = "" if backend else f" (backend {backends.get_backend()})"
    except Exception as failed:
        return Finding(name, WRONG, f"{type(failed).__name__}: {failed}")
    found = f"largest difference from float64 {error:.1e} nats{used}"
    return Finding(name, OK if error <= TOLERANCE else WRONG, found)


@contextlib.contextmanager
def _chosen(backend: str | None) -> Iterator[None]:
    """This backend within the block, and afterwards what was chosen before, be it nothing."""
    before = backends._chosen
    backends._chosen = backend or before
    try:
        yield
    finally:
        backends._chosen = before


def _largest_error(device: torch.device) -> float:
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(7, 1000, generator=generator)).to(device).requires_grad_()
    targets = torch.arange(0, 700, 100, device=device)
    exact = logits.detach().double().requires_grad_()
    log_p = torch.log_softmax(exact, -1)
    truth = log_p.gather(-1, targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)
    ours = logprobs_and_entropy(logits, targets)
    results = ((ours, logits), (truth, exact))
    gradients = [torch.autograd.grad((logprobs + entropy).sum(), x)[0] for (logprobs, entropy), x in results]
    pairs = [*zip(ours, truth, strict=True), tuple(gradients)]
    return max(float((a.detach().double() - b.detach()).abs().max()) for a, b in pairs)
