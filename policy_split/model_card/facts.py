"""What a card says of a run: where the model comes from, its settings, its last numbers."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from policy_split.modes import MODE_NAMES
from policy_split.run_folder.checkpoints import METRICS
from policy_split.run_folder.output_dir import EVALUATION

from .split import Split

SHOWN = (
    "algorithm", "algorithm_settings", "alpha", "eta", "eta_high", "eta_normal", "kappa", "clamp", "target_kl",
    "share_correction", "normalize", "rollout_sharing", "bonus_estimator", "regularizer", "beta", "epsilon",
    "loss_type", "learning_rate", "lr_scheduler_type", "prompts_per_step", "num_generations", "num_iterations",
    "temperature", "max_completion_length", "seed",
)  # fmt: skip
MEASURES = {
    "reward": "reward",
    "entropy": "entropy, nats per token",
    "completions/mean_length": "length, tokens",
}
EVALUATED = {
    "accuracy": "accuracy (mean reward)",
    "distinct_correct": "different correct answers",
    "entropy": "entropy, nats per token",
    "mean_length": "length, tokens",
}
KLS = {"kl_high_normal": "KL(high-entropy ‖ normal)", "kl_normal_high": "KL(normal ‖ high-entropy)"}
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class Facts:
    """split: how the modes are asked; base_model, dataset, reward: names or paths; rows: the metrics of each step;
    evaluation: as evaluation.json has it."""

    split: Split
    base_model: str | None = None
    dataset: str | None = None
    reward: str | Sequence[str] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    rows: Sequence[Mapping[str, Any]] = ()
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    repository: str | None = None  # of the Hub, if it is known
    tags: tuple[str, ...] = ("policy-split", "reinforcement-learning")

    @property
    def shown_settings(self) -> list[tuple[str, str]]:
        return [(name, str(self.settings[name])) for name in SHOWN if self.settings.get(name) is not None]

    @property
    def modes(self) -> list[str]:
        return list(MODE_NAMES) if self.split.dual_mode else [MODE_NAMES[0]]

    @property
    def last_step(self) -> list[list[str]]:
        """Rows of a table: measure, then each mode; those without a number in the last step left out."""
        last: Mapping[str, Any] = next((row for row in reversed(self.rows) if f"{MODE_NAMES[0]}/reward" in row), {})
        table = [
            [title, *(_cell(last.get(f"{mode}/{name}")) for mode in self.modes)] for name, title in MEASURES.items()
        ]
        return [row for row in table if any(cell != "–" for cell in row[1:])]

    @property
    def kls(self) -> list[tuple[str, str]]:
        kl = f"policy_split/{next(iter(KLS))}"
        last: Mapping[str, Any] = next((row for row in reversed(self.rows) if kl in row), {})
        found = [(title, _cell(last.get(f"policy_split/{name}"))) for name, title in KLS.items()]
        return [each for each in found if each[1] != "–"] if self.split.dual_mode else []

    @property
    def steps(self) -> Any:
        return self.rows[-1].get("step") if self.rows else None

    @property
    def evaluated(self) -> list[list[str]]:
        """Rows of a table, each number with its interval."""
        of_mode = [_section(_section(self.evaluation, "modes"), mode) for mode in MODE_NAMES]
        sizes = sorted({size for mode in of_mode for size in _section(mode, "pass_at_k")}, key=lambda k: (len(k), k))
        table = [[f"pass@{k}", *(_interval(_section(mode, "pass_at_k").get(k)) for mode in of_mode)] for k in sizes]
        table += [[title, *(_interval(mode.get(name)) for mode in of_mode)] for name, title in EVALUATED.items()]
        return [row for row in table if any(cell != "–" for cell in row[1:])]


def facts_of_run(folder: Path, split: Split, settings: Mapping[str, Any], repository: str | None = None) -> Facts:
    """Of the run in the folder; settings: as its config.yaml has them."""
    return Facts(
        split,
        settings.get("model") or split.base_model,
        settings.get("dataset"),
        settings.get("reward"),
        settings,
        _rows(folder / METRICS),
        _object(folder / EVALUATION),
        repository,
    )


def public_name(source: Any) -> str | None:
    """A hub's name as it is; of a path the last part alone, for where it lay is nobody's business."""
    if isinstance(source, (list, tuple)):
        return ", ".join(filter(None, map(public_name, source))) or None
    if not source:
        return None
    text = str(source)
    return re.split(r"[/\\]", text.rstrip("/\\"))[-1] if is_path(text) else text


def hub_name(source: Any) -> str | None:
    """The name if it can be one of the Hub's, without a split; None for a path and for what is no name."""
    text = str(source or "").partition(":")[0]
    if not text or str(source).startswith("reasoning-gym:") or is_path(str(source)):
        return None
    return text if HUB_NAME.fullmatch(text) else None


def is_path(text: str) -> bool:
    start = text.rpartition(":")[0]
    there = Path(text).exists() or (bool(start) and Path(start).exists())
    return (
        there
        or text.endswith((".py", ".json", ".jsonl", ".csv", ".parquet"))
        or text.startswith((".", "/", "~"))
        or re.match(r"[A-Za-z]:[\\/]", text) is not None
    )


def _rows(path: Path) -> list[Mapping[str, Any]]:
    if not path.is_file():
        return []
    rows: list[Mapping[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _object(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _section(value: Any, name: str) -> Mapping[str, Any]:
    inner = value.get(name) if isinstance(value, Mapping) else None
    return inner if isinstance(inner, Mapping) else {}


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if is_number(value) else "–"


def _interval(value: Any) -> str:
    if not isinstance(value, Mapping):
        return _cell(value)
    low, high = value.get("low"), value.get("high")
    bounds = f" [{low:.4g}, {high:.4g}]" if is_number(low) and is_number(high) else ""
    return _cell(value.get("mean")) + bounds
