"""What was measured on a GPU, as Markdown."""

import importlib.util
import subprocess
from importlib.metadata import version

import torch

from .lm_head import kinds as linear_kinds
from .logits.kinds import INPLACE, KINDS, OURS
from .markdown import table

TITLES = {
    "forward": "Forward: log-prob and entropy (1 read of N x V)",
    "loss": "Loss with entropy and its gradient (1 read, 1 write)",
    "divergence": "Divergence of two matrices, forward (2 reads)",
    "divergence+gradient": "Divergence, forward and backward to both matrices (4 reads, 2 writes)",
    "loss-masked": "Loss and gradient, 30 % of the rows masked (0.7 reads, 1 write)",
    "loss-no_entropy": "Loss and gradient without entropy (1 read, 1 write)",
    "linear": "LM head: loss with entropy, gradient of hidden states and weight (3 products)",
    "linear-masked": "LM head, 30 % of the tokens masked (3 products of the others)",
    "linear-frozen": "LM head, frozen weight (2 products)",
}


def gpu(device: str) -> dict[str, str]:
    """What a figure from a GPU must be quoted with, beside `interleave.machine`."""
    triton = version("triton") if importlib.util.find_spec("triton") else "none"
    if device != "cuda":
        return {"gpu": "cpu", "triton": triton}
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split("\n")[0].strip()
    except (OSError, subprocess.CalledProcessError):
        driver = "unknown"
    return {"gpu": torch.cuda.get_device_name(), "driver": driver, "cuda": str(torch.version.cuda), "triton": triton}


def markdown(record: dict) -> str:
    """Head, a table for each kind, errors and memory, targets, and all that was not timed with the reason."""
    parts = where_and_whom(record)
    for kind in KINDS:
        results = [x for x in record["results"] if kind.name in x["kinds"]]
        if results:
            parts += [f"### {TITLES[kind.name]}", table_of_times(kind.name, results)]
    parts += ["### Largest error and peak memory", table_of_errors(record["results"])]
    parts += ["### Targets", *targets(record["results"]), "### Not timed", *untimed(record)]
    return "\n\n".join(parts)


def where_and_whom(record: dict) -> list[str]:
    machine = ", ".join(f"{key} {value}" for key, value in record["machine"].items())
    return [machine, "Peers: " + (", ".join(f"{name} {x}" for name, x in record["peers"].items()) or "none")]


def head_markdown(record: dict) -> str:
    """Of the LM head: head, a table for each configuration of each kind, targets, and all that was not timed."""
    parts = where_and_whom(record)
    for kind in linear_kinds.KINDS:
        for result in record["results"]:
            if kind.name in result["kinds"]:
                shape = f"{result['dtype']} N {result['tokens']} D {result['width']} V {result['vocabulary']}"
                candidates = result["kinds"][kind.name]["candidates"]
                parts += [f"### {TITLES[kind.name]}: {shape}", table_of_candidates(candidates)]
    parts += ["### Targets", *targets(record["results"]), "### Not timed", *untimed(record)]
    return "\n\n".join(parts)


def table_of_candidates(candidates: dict[str, dict]) -> str:
    """One line for each candidate that was timed; TFLOP/s are of the products that are needed, whoever does more."""
    head = ["candidate", "ms", "TFLOP/s", "x products", "ours faster", "error hidden", "error weight", "peak GiB"]
    lines = []
    for name, x in candidates.items():
        if "milliseconds" in x:
            notes = [f"bound: without {x['omits']}"] if "omits" in x else []
            notes += [x["ran"]] if "ran" in x else []
            columns = [
                f"{x['milliseconds']:.3f}",
                f"{x['useful_flops'] / 1e12:.3g}" if "useful_flops" in x else "-",
                f"{x['of_products']:.3f}" if "of_products" in x else "-",
                f"{x['ours_is_faster']:.2f}x" if "ours_is_faster" in x else "-",
                *(f"{x['errors'][of]:.1e}" if of in x["errors"] else "-" for of in ("hidden", "weight")),
                f"{x['peak_memory']:.2f}" if "peak_memory" in x else "-",
            ]
            lines.append([name + (f" ({'; '.join(notes)})" if notes else ""), *columns])
    return table(head, lines)


def table_of_times(kind: str, results: list[dict]) -> str:
    """One line for each configuration: milliseconds, and how many times faster ours is; (bound): does less."""
    records = [x["kinds"][kind]["candidates"] for x in results]
    own = [x for x in (OURS, INPLACE) if any(x in record for record in records)]
    others = list(dict.fromkeys(x for record in records for x in record if x not in own))
    bounds = {name for record in records for name, x in record.items() if "omits" in x}
    others = [x for x in others if any("milliseconds" in record.get(x, {}) for record in records)]
    titles = [f"{name} (bound)" if name in bounds else name for name in others]
    head = ["dtype", "N", "V", "copy ms", *(f"{x} ms" for x in own), "of copy", *titles, "targets"]
    lines = []
    for result, record in zip(results, records, strict=True):
        summary = result["kinds"][kind]
        missed = [name for name, passed in summary["targets"].items() if not passed]
        line = [result["dtype"], str(result["tokens"]), str(result["vocabulary"])]
        line.append(f"{result['copy']['milliseconds']:.3f}")
        line += [time(record.get(name, {})) for name in own]
        line.append(f"{summary['share_of_copy']:.1%}" if "share_of_copy" in summary else "-")
        line += [time(record.get(name, {})) for name in others]
        line.append("MISS: " + ", ".join(missed) if missed else "PASS" if summary["targets"] else "-")
        lines.append(line)
    return table(head, lines)


def time(record: dict) -> str:
    if "milliseconds" not in record:
        return "-"
    faster = f" ({record['ours_is_faster']:.2f}x)" if "ours_is_faster" in record else ""
    return f"{record['milliseconds']:.3f}{faster}"


def table_of_errors(results: list[dict]) -> str:
    """Over all configurations: the error against float64, and the peak above the inputs in bytes of one N x V."""
    found: dict[tuple[str, str], list[dict]] = {}
    for result in results:
        for kind, summary in result["kinds"].items():
            for name, record in summary["candidates"].items():
                if "error" in record:
                    found.setdefault((kind, name), []).append({**record, "dtype": result["dtype"]})
    dtypes = sorted({result["dtype"] for result in results})
    lines = []
    for (kind, name), records in found.items():
        peaks = [x["peak_memory"] for x in records if "peak_memory" in x]
        errors = [[x["error"] for x in records if x["dtype"] == dtype] for dtype in dtypes]
        errors = [f"{max(x):.1e}" if x else "-" for x in errors]
        lines.append([kind, name, *errors, f"{max(peaks):.3f}" if peaks else "-"])
    return table(["kind", "candidate", *(f"error in {x}" for x in dtypes), "peak memory (N x V)"], lines)


def targets(results: list[dict]) -> list[str]:
    """Each target with the number of configurations that pass."""
    passed: dict[str, list[bool]] = {}
    for result in results:
        for kind, summary in result["kinds"].items():
            for name, value in summary["targets"].items():
                passed.setdefault(f"{kind} {name}", []).append(value)
    lines = [f"{'PASS' if all(x) else 'MISS'} {name}: {sum(x)} of {len(x)}" for name, x in passed.items()]
    return ["\n".join(f"- {line}" for line in lines)] if lines else ["none could be judged"]


def untimed(record: dict) -> list[str]:
    """Why, of every candidate and configuration that has no time; the same reason once."""
    reasons: dict[str, list[str]] = {}
    for result in record["results"]:
        where = " x ".join(str(result[size]) for size in ("tokens", "width", "vocabulary") if size in result)
        where = f"{result['dtype']} {where}"
        if result["allocator_retries"]:
            reasons.setdefault("memory was short, the times of the largest candidates may be too long", []).append(
                where
            )
        for kind, summary in result["kinds"].items():
            for name, x in summary["candidates"].items():
                if "failed" in x:
                    reasons.setdefault(f"{kind} {name}: {x['failed']}", []).append(where)
    count = len(record["results"])
    lines = [
        f"{why} ({'everywhere' if len(where) == count and count > 1 else ', '.join(where)})"
        for why, where in reasons.items()
    ]
    lines = [f"{name}: {why}" for name, why in (record["missing"] | record["skipped"]).items()] + lines
    return ["\n".join(f"- {line}" for line in lines)] if lines else ["nothing"]
