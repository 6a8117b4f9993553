"""`python -m benchmarks.gpu`: correctness against float64 first, then time, of the logits kernels on a GPU.

Forward (1 read of N x V) and loss with gradient (1 read, 1 write), against eager torch and torch.compile, interleaved;
bytes per second as a share of a device copy in the same run. `--device cpu --tokens 4 --vocabulary 128` only shows that
it runs.
"""

import argparse
import itertools
import json
import statistics
from pathlib import Path

import torch

from . import candidates
from .interleave import interleaved, machine, ratio

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
TOLERANCE = {torch.bfloat16: 2**-7, torch.float32: 1e-5}  # of a gradient, relative to its largest element


def check(runs: dict, batch: candidates.Batch) -> None:
    """Ours against float64 on a few rows: a gradient of all of them would need eight bytes per logit and more."""
    rows = slice(0, 64)
    logits = batch.logits[rows].double()
    exact = candidates.eager_statistics(logits, batch.targets[rows])
    for actual, expected in zip(runs["forward-policy_split"](0), exact, strict=True):
        error = (actual[rows].double() - expected).abs().max().item()
        assert error < 1e-5, f"forward is off by {error}"
    leaf = logits.requires_grad_()
    tokens = (batch.targets[rows], batch.advantages[rows], batch.mode[rows], batch.old_logprobs[rows])
    share = leaf.shape[0] / batch.logits.shape[0]  # eager's mean is over these rows, ours over all
    (gradient,) = torch.autograd.grad(candidates.eager_loss(leaf, *tokens) * share, leaf)
    error = (runs["loss-policy_split"](0)[0][rows].double() - gradient).abs().max() / gradient.abs().max()
    assert error < TOLERANCE[batch.logits.dtype], f"the gradient is off by {error.item()}"


def measure(tokens: int, vocabulary: int, dtype: torch.dtype, device: str, rounds: int) -> dict:
    batches = [candidates.Batch(tokens, vocabulary, dtype, seed, device) for seed in range(2)]
    scratch = torch.zeros_like(batches[0].logits)
    runs = {"copy": candidates.copy(batches, scratch)}
    for name in ("policy_split", "compile", "eager"):
        runs[f"forward-{name}"] = candidates.forward(candidates.statistics_of(name), batches)
        runs[f"loss-{name}"] = candidates.loss_and_gradient(candidates.loss_of(name), batches)
    check(runs, batches[0])
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    seconds = interleaved(runs, rounds, synchronize=synchronize)
    nbytes = batches[0].logits.nbytes
    rate = {name: statistics.median(times) for name, times in seconds.items()}
    moved = {"copy": 2, "forward": 1, "loss": 2}
    speed = {name: moved[name.split("-")[0]] * nbytes / time for name, time in rate.items()}
    return {
        "tokens": tokens,
        "vocabulary": vocabulary,
        "dtype": str(dtype).removeprefix("torch."),
        "milliseconds": {name: time * 1e3 for name, time in rate.items()},
        "share_of_copy": {name: value / speed["copy"] for name, value in speed.items() if "policy_split" in name},
        "faster": {
            f"{kind} than {peer}": ratio(seconds, f"{kind}-{peer}", f"{kind}-policy_split")
            for kind in ("forward", "loss")
            for peer in ("eager", "compile")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[32000, 128256, 151936])
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--output", help="JSON file; by default benchmarks/results/<gpu>.json")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; --device cpu with small sizes shows that the script runs")
    device = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    results = []
    for dtype, tokens, vocabulary in itertools.product(options.dtype, options.tokens, options.vocabulary):
        result = measure(tokens, vocabulary, DTYPES[dtype], options.device, options.rounds)
        results.append(result)
        shares = "  ".join(f"{name} {share:.0%} of copy" for name, share in result["share_of_copy"].items())
        faster = "  ".join(f"{name} {times:.1f}x" for name, times in result["faster"].items())
        print(f"{dtype} {tokens} x {vocabulary}: {shares}  {faster}", flush=True)
    output = Path(options.output or Path(__file__).parent / "results" / f"{device.replace(' ', '-').lower()}.json")
    output.parent.mkdir(exist_ok=True)
    output.write_text(json.dumps({"machine": {**machine(), "gpu": device}, "results": results}, indent=1) + "\n")
    print(f"results: {output}")


if __name__ == "__main__":
    main()
