"""The kernels as a repository of the Kernel Hub: loaded from its folder alone, and beside the installed package."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "hub_layout.py"
USE = """
import importlib.util, sys
from pathlib import Path
import torch

class Nowhere:  # neither package can be imported by its name
    def find_spec(self, name, *more):
        if name.partition(".")[0] in ("policy_split", "policy_split_kernels"):
            raise ImportError(name)

if sys.argv[2] == "alone":
    sys.meta_path.insert(0, Nowhere())
else:
    import policy_split
path = Path(sys.argv[1]) / "__init__.py"
spec = importlib.util.spec_from_file_location("loaded", path)
loaded = sys.modules["loaded"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(loaded)
for backend in ("torch", "triton"):  # Triton's in its interpreter
    loaded.set_backend(backend)
    logits = torch.randn(3, 40, requires_grad=True)
    logprobs, entropy = loaded.logprobs_and_entropy(logits, torch.tensor([1, 2, 3]))
    log_p = torch.log_softmax(logits.double(), -1)
    truth = log_p.gather(-1, torch.tensor([[1], [2], [3]]))[:, 0], -(log_p.exp() * log_p).sum(-1)
    for ours, exact in zip((logprobs, entropy), truth):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad((logprobs + entropy).sum(), logits, retain_graph=True)
    (expected,) = torch.autograd.grad(sum(truth).sum(), logits)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)
    kl = loaded.mode_divergence(logits, 2 * logits)[0]
    assert (kl > 0).all()
assert not [name for name in dir(torch.ops) if name == "policy_split"] or sys.argv[2] != "alone"
print("loaded", sorted(loaded.__all__))
"""


@pytest.fixture(scope="module")
def variant(tmp_path_factory):
    return runpy.run_path(str(SCRIPT))["write"](tmp_path_factory.mktemp("hub"))


@pytest.mark.parametrize("where", ["alone", "beside"])
def test_it_loads_and_computes(variant, where):
    for entry in (variant, variant / "policy_split_kernels"):
        command = [sys.executable, "-c", USE, str(entry), where]
        environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=variant)
        assert done.returncode == 0, done.stderr
        assert "logprobs_and_entropy" in done.stdout
        if where == "beside":
            break


def test_it_holds_no_import_of_the_package(variant):
    for path in variant.rglob("*.py"):
        lines = path.read_text().splitlines()
        assert not [x for x in lines if x.strip().startswith(("from policy_split", "import policy_split"))]
