"""policy-split sample RUN --prompt TEXT: what both modes answer, side by side, with the entropy of every token."""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from policy_split.config import PolicySplitConfig
from policy_split.model_card.split import read_split
from policy_split.models.policy import Policy, check_fit, load_model, load_tokenizer, placed
from policy_split.models.source import check_source
from policy_split.modes import HIGH_ENTROPY, MODE_NAMES, MODES, NORMAL
from policy_split.report.terminal import column_width, legend, side_by_side, wrapped
from policy_split.rollouts.answers import Answer, answers, prompts_of
from policy_split.run_folder.checkpoints import CHECKPOINTS
from policy_split.run_folder.record import read_settings

HELP = """Ask a model in one mode or in both and show its answers.

RUN is the folder of a run, one of its checkpoints or any causal language model; the prompts of the modes and
the settings of sampling are those of its policy_split.json or of its run's config.yaml, else the defaults. In
a terminal each token stands on the color of its entropy; NO_COLOR switches that off."""
ASKED = {"normal": (NORMAL,), "high-entropy": (HIGH_ENTROPY,), "both": MODES}
SETTINGS = (
    "high_entropy_prompt", "normal_prompt", "high_entropy_place", "chat_template_kwargs", "temperature",
    "max_completion_length", "model_dtype", "attn_implementation", "seed",
)  # fmt: skip


def run(arguments: list[str]) -> int:
    chosen = _parse(arguments)
    if chosen.num_samples < 1:
        raise ValueError(f"--num-samples={chosen.num_samples} must be at least 1")
    prompt = sys.stdin.read() if chosen.prompt == "-" else chosen.prompt
    if not prompt.strip():
        raise ValueError("--prompt is empty; give a question, or - and the question on standard input")
    check_source(chosen.model)
    config, modes = PolicySplitConfig(**_settings(chosen)), ASKED[chosen.mode]
    tokenizer = load_tokenizer(None, chosen.model)
    prompts = prompts_of(tokenizer, prompt, config, modes)
    device = "cuda" if torch.cuda.is_available() and not chosen.use_cpu else "cpu"
    model = placed(load_model(chosen.model, config), device).eval()
    check_fit(model, tokenizer, max(map(len, prompts)), config.max_completion_length)
    found = dict(zip(modes, answers(Policy(model, tokenizer), prompts, config, chosen.num_samples), strict=True))
    if chosen.json:
        print(_json(chosen.model, prompt, config, found))
    else:
        print(shown(found, width=shutil.get_terminal_size((100, 24)).columns, color=_wants_color()))
    return 0


def shown(found: Mapping[int, Sequence[Answer]], *, width: int, color: bool) -> str:
    """The answers of the modes, each pair below the one before."""
    room = column_width(len(found), width)
    parts = [legend()] if color else []
    for number, row in enumerate(zip(*found.values(), strict=True), 1):
        columns = []
        for mode, answer in zip(found, row, strict=True):
            tokens = list(zip(answer.tokens, answer.entropy, strict=True))
            columns.append([*wrapped([(_heading(mode, number, answer), 0.0)], room), *wrapped(tokens, room)])
        parts.append(side_by_side(columns, width, color=color))
    return "\n\n".join(parts)


def _heading(mode: int, number: int, answer: Answer) -> str:
    mean = sum(answer.entropy) / len(answer.entropy)
    cut = ", cut off" if answer.truncated else ""
    return f"{MODE_NAMES[mode].replace('_', '-')} {number}: {len(answer.tokens)} tokens, {mean:.2f} nats/token{cut}"


def _json(model: str, prompt: str, config: PolicySplitConfig, found: Mapping[int, Sequence[Answer]]) -> str:
    asked = {"model": model, "prompt": prompt, "temperature": config.temperature, "seed": config.seed}
    asked["max_tokens"] = config.max_completion_length
    modes = {MODE_NAMES[mode]: [asdict(answer) for answer in each] for mode, each in found.items()}
    return json.dumps(asked | {"modes": modes}, ensure_ascii=False)


def _settings(chosen: argparse.Namespace) -> dict[str, Any]:
    folder = Path(chosen.model)
    run_folder = folder.parent.parent if folder.absolute().parent.name == CHECKPOINTS else folder
    settings = dict(read_settings(run_folder) or {}) if folder.is_dir() else {}
    split = read_split(folder) if folder.is_dir() else None
    if split is not None:
        settings |= asdict(split)
    given = {
        "temperature": chosen.temperature,
        "max_completion_length": chosen.max_tokens,
        "seed": chosen.seed,
        "model_dtype": chosen.model_dtype,
    }
    settings = {name: settings[name] for name in SETTINGS if name in settings}
    settings |= {name: value for name, value in given.items() if value is not None}
    return settings | {"max_prompt_length": None, "use_cpu": chosen.use_cpu}


def _wants_color() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="policy-split sample", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="RUN", help="A run's folder, a checkpoint, or a model's name or path.")
    parser.add_argument("--prompt", required=True, help="The question, as the user's message; -: from standard input.")
    parser.add_argument("--mode", choices=ASKED, default="both", help="Which mode is asked.")
    parser.add_argument("--num-samples", type=int, default=8, help="Answers of each mode.")
    parser.add_argument("--temperature", type=float, help="Not given: that of the training, or 1.")
    parser.add_argument("--max-tokens", type=int, help="Longest answer. Not given: that of the training, or 256.")
    parser.add_argument("--seed", type=int, help="The answers are a function of it. Not given: the training's, or 42.")
    parser.add_argument("--model-dtype", help="float32, bfloat16, float16 or auto. Not given: the training's.")
    parser.add_argument("--use-cpu", action="store_true", help="Stay on the CPU even where there is an accelerator.")
    parser.add_argument("--json", action="store_true", help="One JSON object: texts, tokens and entropies by mode.")
    return parser.parse_args(arguments)
