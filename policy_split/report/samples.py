"""Samples of a report: what both modes wrote to the same question, side by side, entropy as background color."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from policy_split.modes import MODE_NAMES

from .runs import Run, number

LARGEST_NUMBER_OF_TOKENS = 400  # of one response; what is left out is counted
SCALE_QUANTILE = 0.97  # of the entropies shown: from here on the color is full
STRONGEST = 0.6  # opacity of the full color: text stays readable on it
THIN_SPACE = "\u2009"


@dataclass
class Token:
    text: str
    share: str  # of the full color
    title: str


@dataclass
class Sample:
    """One response; the prompt is empty where it is that of the response before."""

    prompt: str
    tokens: list[Token]
    completion: str  # in place of tokens, where their entropies are not known
    left_out: int
    facts: str


@dataclass
class Step:
    """The responses of one step by mode; `unknown` counts those of no known mode."""

    step: int
    sides: dict[str, list[Sample]]
    unknown: int


@dataclass
class RunSamples:
    """The last step first; `steps_in_file` counts those that are not shown too."""

    name: str
    steps: list[Step]
    steps_in_file: int


@dataclass
class Samples:
    """Every run on one scale: (entropy, share of the full color) from none to full; empty without entropies."""

    scale: list[tuple[str, str]]
    runs: list[RunSamples]


def read_samples(runs: Sequence[Run]) -> Samples:
    rows = [row for run in runs for step in run.samples.values() for row in step]
    found = sorted(value for row in rows for value in _entropies(row) if value is not None)
    # not the largest: a single odd token would make all the others pale
    full = found[round(SCALE_QUANTILE * (len(found) - 1))] if found else 0.0
    marks = [(f"{full * share:.2f}", f"{share * STRONGEST:.2f}") for share in (0, 0.25, 0.5, 0.75, 1)]
    shown = [
        RunSamples(
            run.name,
            [_step(step, own, full) for step, own in sorted(run.samples.items(), reverse=True)],
            run.steps_with_samples,
        )
        for run in runs
    ]
    return Samples(marks if full > 0 else [], shown)


def _step(step: int, rows: Sequence[Mapping[str, Any]], full: float) -> Step:
    sides = {}
    for mode in MODE_NAMES:
        own = [row for row in rows if row.get("mode") == mode]
        prompts = ["", *(str(row.get("prompt", "")) for row in own)]
        sides[f"{mode.replace('_', '-')} mode"] = [
            _sample(row, prompt if prompt != before else "", full)
            for row, before, prompt in zip(own, prompts, prompts[1:], strict=False)
        ]
    return Step(step, sides, sum(row.get("mode") not in MODE_NAMES for row in rows))


def _sample(row: Mapping[str, Any], prompt: str, full: float) -> Sample:
    entropies, reward = _entropies(row), number(row.get("reward"))
    finite = [value for value in entropies if value is not None]
    facts = [f"reward {reward:.4g}" if reward is not None else "no reward"]
    facts += [f"{len(entropies)} tokens"] if entropies else []
    facts.append(f"mean entropy {sum(finite) / len(finite):.3f} nats" if finite else "no entropies")
    texts = row["tokens"] if entropies else []
    pairs = list(zip(texts, entropies, strict=True))[:LARGEST_NUMBER_OF_TOKENS]
    tokens = [_token(str(text), value, full) for text, value in pairs]
    completion = "" if entropies else str(row.get("completion", ""))
    return Sample(prompt, tokens, completion, len(entropies) - len(tokens), ", ".join(facts))


def _token(text: str, entropy: float | None, full: float) -> Token:
    # a token that ends within a character has no text of its own; a thin space keeps its place and its color
    shown = text or THIN_SPACE
    if entropy is None:
        return Token(shown, "0", "no finite entropy")
    share = min(max(entropy / full, 0.0), 1.0) * STRONGEST if full > 0 else 0.0
    return Token(shown, f"{share:.2f}", f"{entropy:.3f} nats")


def _entropies(row: Mapping[str, Any]) -> list[float | None]:
    """One for each token, empty where tokens and entropies are not of one length."""
    tokens, values = row.get("tokens"), row.get("entropy")
    if not isinstance(tokens, list) or not isinstance(values, list) or len(tokens) != len(values):
        return []
    return [number(value) for value in values]
