"""`make bench-gpu`: values against float64 first, then time, of this package and of all peers that are there.

`logits`: log-prob and entropy, loss with gradient, divergence of two modes, as a share of a device copy's bytes per
second. `head`: the LM head, hidden states and weight to loss and the gradient of both, beside three bare products of
matrices. Against eager torch, torch.compile and the libraries of `logits.peers` and `lm_head.peers`, interleaved.
`--peers DIR` is a folder to import peers from: `pip install --target DIR --no-deps trl liger-kernel ...` fills it.
`--device cpu --tokens 16 --vocabulary 130 --heads 16,8,130` only shows that it runs.
"""

import argparse
import itertools
import json
import site
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from .budget import Budget, fits, head_fits
from .interleave import machine
from .lm_head.measure import measure_head
from .lm_head.peers import LINEAR_PEERS
from .logits.measure import DeviceLost, measure, reason
from .logits.peers import PEERS, importable
from .report import gpu, head_markdown, markdown

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Logits:
    tokens: int
    dtype: str
    vocabulary: int

    @property
    def name(self) -> str:
        return f"{self.dtype} {self.tokens} x {self.vocabulary}"

    @property
    def size(self) -> int:
        """What the time of one round grows with: bytes."""
        return self.tokens * self.vocabulary * DTYPES[self.dtype].itemsize

    def attempt(self, record: dict, device: str, **settings) -> dict | str:
        """What was measured, or why nothing was."""
        why, pair = fits(self.size, device)
        if why:
            return why
        if not pair:
            record["skipped"][f"{self.name}, divergence"] = "two matrices and their gradients do not fit"
        return measure(self.tokens, self.vocabulary, DTYPES[self.dtype], device, pair=pair, **settings)


@dataclass(frozen=True)
class Head:
    tokens: int
    width: int
    vocabulary: int
    dtype: str

    @property
    def name(self) -> str:
        return f"{self.dtype} {self.tokens} x {self.width} x {self.vocabulary}"

    @property
    def size(self) -> int:
        """What the time of one round grows with: operations."""
        return self.tokens * self.width * self.vocabulary

    def attempt(self, record: dict, device: str, **settings) -> dict | str:
        dtype = DTYPES[self.dtype]
        why = head_fits(self.tokens, self.width, self.vocabulary, dtype.itemsize, device)
        return why or measure_head(self.tokens, self.width, self.vocabulary, dtype, device, **settings)


def main() -> None:
    options = arguments()
    if options.peers:
        folder = str(Path(options.peers).resolve())
        sys.path.insert(0, folder)
        site.addsitedir(folder)  # for its .pth files
    where = {**machine(), **gpu(options.device)}
    output = Path(options.output or Path(__file__).parent / "results" / f"{file_name(where['gpu'])}.json")
    output.parent.mkdir(exist_ok=True)
    good = True
    if "logits" in options.work:
        sizes = itertools.product(options.tokens, options.dtype, options.vocabulary)
        record = run([Logits(*size) for size in sizes], PEERS, where, output, options)
        print(f"\n{markdown(record)}\n\nresults: {output}", flush=True)
        good &= right(record)
    if "head" in options.work:
        output = output.with_stem(f"{output.stem}-linear")
        heads = [Head(*size, options.dtype[0]) for size in options.heads]
        record = run(heads, LINEAR_PEERS, where, output, options)
        print(f"\n{head_markdown(record)}\n\nresults: {output}")
        good &= right(record)
    sys.exit(0 if good else 1)


def run(
    configurations: list[Logits] | list[Head], peers: list, where: dict, output: Path, options: argparse.Namespace
) -> dict:
    """The record of all configurations, those that were skipped among them."""
    budget = Budget(options.budget)
    versions, missing = importable(peers)
    print(f"peers: {versions}\nmissing: {missing}", flush=True)
    record = {"machine": where, "peers": versions, "missing": missing, "skipped": {}, "results": []}
    without = [*options.without, *missing]
    for configuration in configurations:
        name = configuration.name
        why = record["skipped"].get("the rest") or budget.refuses(configuration.size)
        why = why or attempt(record, configuration, options, without, budget)
        if why:
            record["skipped"][name] = why
        print(f"{budget.elapsed():4.0f} s  {name}: {f'skipped: {why}' if why else 'measured'}", flush=True)
        output.write_text(json.dumps(record, indent=1) + "\n")  # what was measured outlives a crash
    return record


def attempt(
    record: dict, configuration: Logits | Head, options: argparse.Namespace, without: list[str], budget: Budget
) -> str:
    """Measure one configuration into `record`, or say why not."""
    try:
        result = configuration.attempt(
            record, options.device, rounds=options.rounds, once=not record["results"], without=without
        )
    except DeviceLost as problem:
        record["skipped"]["the rest"] = str(problem)
        return str(problem)
    except Exception as problem:
        return reason(problem)
    if isinstance(result, str):
        return result
    budget.spent(configuration.size, **result["seconds"])
    record["results"].append(result)
    return ""


def right(record: dict) -> bool:
    """Something was measured, and ours was wrong nowhere."""
    return bool(record["results"]) and not any(wrong(result) for result in record["results"])


def wrong(result: dict) -> bool:
    ours = [x for kind in result["kinds"].values() for name, x in kind["candidates"].items() if "policy" in name]
    return any("failed" in x and x["failed"] != "out of memory" for x in ours)


def file_name(device: str) -> str:
    return device.replace(" ", "-").lower()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--work", nargs="+", choices=["logits", "head"], default=["logits", "head"])
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 2048, 32768], help="rows of logits")
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[151936, 128256, 32000], help="their columns")
    parser.add_argument(
        "--heads", type=head_size, nargs="+", metavar="N,D,V",
        default=[(16384, 4096, 131072), (16384, 4096, 151936), (16384, 2048, 151936)],
    )  # fmt: skip
    parser.add_argument(
        "--dtype", nargs="+", choices=DTYPES, default=list(DTYPES), help="of the LM head the first alone"
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument(
        "--budget", type=float, default=480, help="seconds for each work; what will not fit is skipped and named"
    )
    parser.add_argument("--peers", help="folder to import peers from")
    parser.add_argument("--without", nargs="+", default=[], help="candidates to leave out: compile, trl, ...")
    parser.add_argument(
        "--output", help="JSON file, by default benchmarks/results/<gpu>.json; of the LM head it ends in -linear"
    )
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; --device cpu with small sizes shows that the script runs")
    return options


def head_size(text: str) -> tuple[int, int, int]:
    tokens, width, vocabulary = (int(x) for x in text.split(","))
    return tokens, width, vocabulary


if __name__ == "__main__":
    main()
