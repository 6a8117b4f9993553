"""Folders of runs that were never trained: what a report and its parts are made of."""

import json

HOSTILE = '</script><script>window.broken=1</script><img src=x onerror="window.broken=1"></style>"\'&amp;'


def metrics_of(step, shift=0.0):
    modes = (("normal", 0.0), ("high_entropy", 0.25))
    row = {"step": step}
    for mode, more in modes:
        row |= {f"{mode}/reward": 0.5 + more + shift, f"{mode}/entropy": 1.0 + more + shift, f"{mode}/clip_ratio": 0.0}
    return row | {"policy_split/kl_high_normal": 0.02 * step, "policy_split/kl_normal_high": 0.01 * step}


def sample_of(step, mode, text="a b", **options):
    row = {"step": step, "mode": mode, "prompt": f"question for {mode}", "completion": text, "reward": 1.0}
    return row | {"tokens": [text, "<eos>"], "entropy": [2.0, 0.5]} | options


def evaluation_of(accuracy=0.5):
    measures = {"accuracy": {"mean": accuracy, "low": 0.25, "high": 0.75}, "entropy": 1.5, "distinct_correct": 3.0}
    ks = {"1": {"mean": accuracy, "low": 0.25, "high": 0.75}, "2": {"mean": 0.75, "low": 0.5, "high": 1.0}, "8": 0.875}
    mode = {"pass_at_k": ks, **measures}
    kl = {"kl_high_normal": {"mean": 0.125, "low": 0.1, "high": 0.2}, "kl_normal_high": 0.25}
    return {"modes": {"normal": mode, "high_entropy": mode}, **kl, "num_questions": 12, "num_samples": 8}


def write(folder, **pieces):
    """A run's folder: `metrics_jsonl=[rows]`, `config_yaml=text or values` and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in pieces.items():
        lines = value if isinstance(value, str) else json.dumps(value)
        if not isinstance(value, str) and name.endswith("jsonl"):
            lines = "".join(json.dumps(row) + "\n" for row in value)
        (folder / name.replace("_", ".")).write_text(lines)
    return folder


def whole_run(folder, steps=40, **pieces):
    samples = [sample_of(step, mode) for step in (1, 20, 40) for mode in ("normal", "high_entropy")]
    return write(
        folder,
        **{
            "metrics_jsonl": [metrics_of(step) for step in range(1, steps + 1)],
            "evaluation_json": evaluation_of(),
            "samples_jsonl": samples,
            "config_yaml": "eta: 0.5\nseed: 1\n",
            "environment_json": {"python": "3.11", "packages": {"torch": "2.13"}},
        }
        | pieces,
    )
