"""`make bench-cpu`: forward and loss with gradient on the CPU, against eager torch and torch.compile.

128 x 151936 float32; one interleaved run, whose samples pytest-benchmark tabulates. Bytes: forward 1 read of N x V,
loss with gradient 1 read and 1 write. Values are compared before anything is timed; then the ratios are held to their
targets.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from . import candidates
from .interleave import interleaved, machine, ratio

TOKENS, VOCABULARY, ROUNDS = 128, 151936, 20
TARGETS = [  # (slow, fast, at least)
    ("forward-eager", "forward-policy_split", 15.0),
    ("forward-compile", "forward-policy_split", 2.5),
    ("loss-eager", "loss-policy_split", 15.0),
    ("loss-compile", "loss-policy_split", 8.0),
]
NAMES = [
    "copy", "forward-policy_split", "forward-compile", "forward-eager",
    "loss-policy_split", "loss-policy_split-inplace", "loss-policy_split-new_pages", "loss-compile", "loss-eager",
]  # fmt: skip
RESULTS = Path(__file__).parent / "results" / f"cpu-{torch.backends.cpu.get_cpu_capability().lower()}.json"


@pytest.fixture(scope="module")
def batches():
    return [candidates.Batch(TOKENS, VOCABULARY, torch.float32, seed) for seed in range(3)]


@pytest.fixture(scope="module")
def seconds(batches):
    scratch = torch.zeros_like(batches[0].logits)
    runs = {"copy": candidates.copy(batches, scratch)}
    for name in ("policy_split", "compile", "eager"):
        runs[f"forward-{name}"] = candidates.forward(candidates.statistics_of(name), batches)
        runs[f"loss-{name}"] = candidates.loss_and_gradient(candidates.loss_of(name), batches)
    runs["loss-policy_split-new_pages"] = candidates.loss_and_gradient_new_pages(batches)
    runs["loss-policy_split-inplace"] = candidates.loss_and_gradient_inplace(batches, scratch)
    check_values(runs, batches[0])
    taken = interleaved(runs, ROUNDS)
    report(taken, batches[0].logits.nbytes)
    return taken


def check_values(runs, batch):
    exact = candidates.eager_statistics(batch.logits.double(), batch.targets)
    leaf = batch.logits.double().requires_grad_()
    loss = candidates.eager_loss(leaf, batch.targets, batch.advantages, batch.mode, batch.old_logprobs)
    (gradient,) = torch.autograd.grad(loss, leaf)
    for name in ("policy_split", "compile", "eager"):
        for actual, expected in zip(runs[f"forward-{name}"](0), exact, strict=True):
            error = (actual.double() - expected).abs().max()
            assert error < (5e-6 if name == "policy_split" else 5e-4), (name, error)
        error = (runs[f"loss-{name}"](0)[0].double() - gradient).abs().max() / gradient.abs().max()
        assert error < 1e-5, (name, error)


def report(seconds, nbytes):
    median = {name: sorted(times)[len(times) // 2] for name, times in seconds.items()}
    print("\n" + "  ".join(f"{key}: {value}" for key, value in machine().items()))
    print(f"copy: {2 * nbytes / median['copy'] / 1e9:.1f} GB/s (one read, one write)")
    print(f"{'':28} {'median':>10} {'copies':>7} {'of eager':>9} {'of compile':>11}")
    for name in NAMES:
        kind = name.split("-")[0]
        versus = [
            f"{ratio(seconds, f'{kind}-{peer}', name):.1f}x" if kind != "copy" else "" for peer in ("eager", "compile")
        ]
        copies = ratio(seconds, name, "copy")
        print(f"{name:28} {median[name] * 1e3:7.2f} ms {copies:7.2f} {versus[0]:>9} {versus[1]:>11}")
    RESULTS.parent.mkdir(exist_ok=True)
    record = {"machine": machine(), "shape": [TOKENS, VOCABULARY], "dtype": "float32", "seconds": seconds}
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")


@pytest.mark.parametrize("name", NAMES)
def test_time(benchmark, seconds, name):
    """Hands pytest-benchmark the samples of the interleaved run, so that its table and its files hold them."""
    samples = iter(seconds[name])
    clock = [0.0]

    def timer():  # called once before and once after each round
        return clock.pop() if len(clock) > 1 else clock[0]

    def next_round():
        clock[:] = [next(samples), 0.0]

    benchmark._timer = timer
    benchmark.pedantic(lambda: None, setup=next_round, rounds=len(seconds[name]), iterations=1)
    assert benchmark.stats.stats.median == pytest.approx(sorted(seconds[name])[len(seconds[name]) // 2], rel=0.2)


@pytest.mark.parametrize(("slow", "fast", "at_least"), TARGETS)
def test_target(seconds, slow, fast, at_least):
    assert ratio(seconds, slow, fast) >= at_least


@pytest.mark.parametrize(("name", "at_most"), [("policy_split", 1.0), ("inplace", 0.0)])
def test_peak_memory(name, at_most):
    """Above the logits, in N x V; 3 % of slack for the allocator and the interpreter."""
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", name], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    peak = json.loads(child.stdout)
    print(f"\npeak memory above the logits, {name}: {peak:.3f} N x V")
    assert peak <= at_most + 0.03
