"""`make bench-cpu`: the LM head on the CPU, float32: hidden states and weight -> loss with entropy -> both gradients.

One interleaved run for each shape. The roofline is three bare products of matrices as a torch user writes them, each
2 N D V operations; `products-kept` writes them into memory that is there already. Of the peers those that are installed
(`PYTHONPATH=DIR make bench-cpu` shows it a folder of them). Values are compared with float64 before anything is timed.
"""

import json
import os
import statistics
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from ..interleave import interleaved, machine, ratio
from ..logits import check
from . import linear
from .kinds import CROSS_ENTROPY, LOSSES
from .memory import CHUNK_BYTES, TOKENS, VOCABULARY, WIDTH
from .peers import LINEAR_PEERS

SHAPES = [(512, 1024, 32000), (256, 512, 151936)]  # N, D, V
ROUNDS, MASKED = 7, 0.3
OURS, PRODUCTS = "policy_split", "products"
PEERS = ["trl", "liger", "torch-chunked"]  # those that work without a GPU; Liger in plain torch
OMITS = {"torch-chunked": CROSS_ENTROPY}
OF_PRODUCTS, OF_TRL = 1.12, 1.7
RESULTS = Path(__file__).parents[1] / "results" / f"cpu-linear-{torch.backends.cpu.get_cpu_capability().lower()}.json"
pytestmark = pytest.mark.timeout(900)  # a shape takes two minutes, more where others use the machine
RECORD = {"machine": machine(), "dtype": "float32", "shapes": {}, "memory": {}}


@pytest.fixture(scope="module", params=SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def seconds(request):
    batch = linear.HeadBatch(*request.param, torch.float32, masked=MASKED)
    runs = runs_of(batch)
    errors = check_values(runs, batch)
    taken = interleaved(runs, ROUNDS, warmup=1)
    report(request.param, taken, errors)
    return taken


def runs_of(batch):
    products = linear.Products(batch)
    losses = {
        OURS: linear.our_head_loss,
        f"{OURS}-token": linear.our_token_loss,
        f"{OURS}-statistics": linear.our_statistics_loss,
        "compile": torch.compile(linear.eager_head_loss, dynamic=False),
        "eager": linear.eager_head_loss,
    } | peers()
    runs = {PRODUCTS: products.fresh(), f"{PRODUCTS}-kept": products.kept(), f"{PRODUCTS}-frozen": products.fresh(True)}
    runs |= {name: linear.loss_and_gradients(loss, batch) for name, loss in losses.items()}
    runs[f"{OURS}-masked"] = linear.loss_and_gradients(linear.our_head_loss, batch, masked=True)
    runs[f"{OURS}-frozen"] = linear.loss_and_gradients(linear.our_head_loss, batch, frozen=True)
    return runs


def peers():
    found = {}
    for peer in LINEAR_PEERS:
        if peer.name in PEERS:
            try:
                with warnings.catch_warnings(action="ignore"):
                    found[peer.name] = peer.load()
            except ImportError as problem:
                print(f"\nwithout {peer.name}: {problem}")
    return found


def check_values(runs, batch):
    """Ours closely; the others so that nothing else is timed by mistake."""
    exact = {
        (omits, masked): check.HeadGradients(batch, LOSSES[omits], masked)
        for omits, masked in [("", False), ("", True), (CROSS_ENTROPY, False)]
    }
    errors = {}
    for name, run in runs.items():
        with warnings.catch_warnings(action="ignore"):  # of peers, about themselves
            gradients = run(0)
        errors[name] = exact[OMITS.get(name, ""), name.endswith("-masked")].errors(gradients)
        bound = check.HEAD["ours" if name.startswith(OURS) else "peer"][torch.float32]
        assert max(errors[name].values()) < bound, (name, errors[name])
    return errors


def report(shape, seconds, errors):
    tokens, width, vocabulary = shape
    print("\n" + "  ".join(f"{key}: {value}" for key, value in RECORD["machine"].items()))
    print(f"N {tokens}, D {width}, V {vocabulary}")
    print(f"{'':26} {'median':>10} {'GFLOP/s':>8} {'x products':>11} {'x kept':>7} {'ours faster':>12} {'error':>8}")
    for name, times in seconds.items():
        median, products = statistics.median(times), 2 if name.endswith("-frozen") else 3
        speed = products * 2 * tokens * width * vocabulary / median / 1e9
        if name.endswith("-masked"):
            speed *= 1 - MASKED
        print(
            f"{name:26} {median * 1e3:7.1f} ms {speed:8.1f} {ratio(seconds, name, PRODUCTS):11.3f} "
            f"{ratio(seconds, name, f'{PRODUCTS}-kept'):7.3f} {ratio(seconds, name, OURS):11.2f}x "
            f"{max(errors[name].values()):8.1e} {'bound: without ' + OMITS[name] if name in OMITS else ''}"
        )
    RECORD["shapes"]["x".join(map(str, shape))] = {"seconds": seconds, "errors": errors}
    write()


def write():
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(RECORD, indent=1) + "\n")


def test_little_more_than_the_products(seconds):
    assert ratio(seconds, OURS, PRODUCTS) <= OF_PRODUCTS


def test_faster_than_trl(seconds):
    if "trl" not in seconds:
        pytest.skip("TRL is not installed")
    assert ratio(seconds, "trl", OURS) >= OF_TRL


@pytest.mark.parametrize("other", ["eager", "compile"])
def test_faster_than_torch(seconds, other):
    assert ratio(seconds, other, OURS) > 1


def test_masked_tokens_cost_nothing(seconds):
    assert ratio(seconds, f"{OURS}-masked", OURS) <= 1 - MASKED + 0.05


def test_a_frozen_weight_costs_two_products(seconds):
    assert ratio(seconds, f"{OURS}-frozen", f"{PRODUCTS}-frozen") <= OF_PRODUCTS


@pytest.fixture(scope="module")
def memory():
    """Bytes above inputs and gradients of each number of tokens, for ours and for eager torch."""
    peaks = {name: peak_memory(name) for name in (OURS, "eager")}
    print(f"\npeak memory above inputs and gradients, D {WIDTH}, V {VOCABULARY}, MiB")
    print(f"{'N':>6} {OURS:>12} {'eager':>12} {'N x V':>12}")
    for tokens in TOKENS:
        columns = peaks[OURS][tokens], peaks["eager"][tokens], tokens * VOCABULARY * 4
        print(f"{tokens:6} " + " ".join(f"{x / 2**20:12.1f}" for x in columns))
    RECORD["memory"] = peaks
    write()
    return peaks


def peak_memory(name):
    """The C library is told to give back what is freed: kept, it would be there before the next loss, not counted."""
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.lm_head.memory", name], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[2], env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "100000"},
    )  # fmt: skip
    return {int(tokens): peak for tokens, peak in json.loads(child.stdout).items()}


@pytest.mark.parametrize("tokens", TOKENS)
def test_memory_is_one_chunk(memory, tokens):
    assert memory[OURS][tokens] <= 1.1 * CHUNK_BYTES


def test_memory_of_eager_torch_grows_with_the_logits(memory):
    few, many = TOKENS[0], TOKENS[-1]
    assert memory["eager"][many] - memory["eager"][few] >= 2 * (many - few) * VOCABULARY * 4
