"""`make bench-gpu`: values against float64 first, then time, of the logits kernels and of all peers that are there.

Log-prob and entropy, loss with gradient, divergence of two modes, against eager torch, torch.compile and the libraries
of `peers`, interleaved; bytes per second as a share of a device copy in the same run. `--peers DIR` is a folder to
import peers from, as one `pip install --target DIR --no-deps trl liger-kernel ...` fills it. `--device cpu --tokens 16
--vocabulary 130` only shows that it runs.
"""

import argparse
import itertools
import json
import site
import sys
from pathlib import Path

import torch

from .budget import Budget, fits
from .interleave import machine
from .measure import DeviceLost, measure, reason
from .peers import importable
from .report import gpu, markdown

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def main() -> None:
    options = arguments()
    budget = Budget(options.budget)
    if options.peers:
        folder = str(Path(options.peers).resolve())
        sys.path.insert(0, folder)
        site.addsitedir(folder)  # for its .pth files
    versions, missing = importable()
    print(f"peers: {versions}\nmissing: {missing}", flush=True)
    options.without += missing
    where = {**machine(), **gpu(options.device)}
    record = {"machine": where, "peers": versions, "missing": missing, "skipped": {}, "results": []}
    output = Path(options.output or Path(__file__).parent / "results" / f"{file_name(where['gpu'])}.json")
    output.parent.mkdir(exist_ok=True)
    for tokens, dtype, vocabulary in itertools.product(options.tokens, options.dtype, options.vocabulary):
        name = f"{dtype} {tokens} x {vocabulary}"
        why = record["skipped"].get("the rest") or attempt(record, name, tokens, vocabulary, dtype, options, budget)
        if why:
            record["skipped"][name] = why
        print(f"{budget.elapsed():4.0f} s  {name}: {f'skipped: {why}' if why else 'measured'}", flush=True)
        output.write_text(json.dumps(record, indent=1) + "\n")  # what was measured outlives a crash
    print(f"\n{markdown(record)}\n\nresults: {output}")
    sys.exit(1 if any(wrong(result) for result in record["results"]) or not record["results"] else 0)


def attempt(
    record: dict, name: str, tokens: int, vocabulary: int, dtype: str, options: argparse.Namespace, budget: Budget
) -> str:
    """Measure one configuration into `record`, or say why not."""
    nbytes, first = tokens * vocabulary * DTYPES[dtype].itemsize, not record["results"]
    try:
        why, pair = fits(nbytes, options.device)
        why = why or budget.refuses(nbytes)
        if why:
            return why
        result = measure(
            tokens, vocabulary, DTYPES[dtype], options.device, options.rounds, first, pair, options.without
        )
    except DeviceLost as problem:
        record["skipped"]["the rest"] = str(problem)
        return str(problem)
    except Exception as problem:
        return reason(problem)
    budget.spent(nbytes, **result["seconds"])
    record["results"].append(result)
    if not pair:
        record["skipped"][f"{name}, divergence"] = "two matrices and their gradients do not fit"
    return ""


def wrong(result: dict) -> bool:
    ours = [x for kind in result["kinds"].values() for name, x in kind["candidates"].items() if "policy" in name]
    return any("failed" in x and x["failed"] != "out of memory" for x in ours)


def file_name(device: str) -> str:
    return device.replace(" ", "-").lower()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 2048, 32768])
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[151936, 128256, 32000])
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--budget", type=float, default=480, help="seconds; what will not fit is skipped and named")
    parser.add_argument("--peers", help="folder to import peers from")
    parser.add_argument("--without", nargs="+", default=[], help="candidates to leave out: compile, trl, ...")
    parser.add_argument("--output", help="JSON file; by default benchmarks/results/<gpu>.json")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; --device cpu with small sizes shows that the script runs")
    return options


if __name__ == "__main__":
    main()
