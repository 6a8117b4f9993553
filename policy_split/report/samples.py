"""Samples of a report: what both modes wrote to the same question, side by side, entropy as background colour."""

from collections.abc import Mapping, Sequence
from typing import Any

from policy_split.modes import MODE_NAMES

from .page import element, escape
from .runs import Run, number

LARGEST_NUMBER_OF_TOKENS = 400  # of one response; what is left out is counted
SCALE_QUANTILE = 0.97  # of the entropies shown: from here on the colour is full
STRONGEST = 0.6  # opacity of the full colour: text stays readable on it


def samples_section(runs: Sequence[Run]) -> str:
    """The last step of every run open, the ones before it folded; one scale of colour for the whole page."""
    rows = [row for run in runs for step in run.samples.values() for row in step]
    found = sorted(value for row in rows for value in _entropies(row) if value is not None)
    # not the largest: a single odd token would make all the others pale
    scale = found[round(SCALE_QUANTILE * (len(found) - 1))] if found else 0.0
    parts = [_key(scale)] if scale > 0 else []
    for run in runs:
        parts.append(element("h3", escape(run.name)))
        if not run.samples:
            parts.append(element("p", "No samples: the run has no samples.jsonl.", {"class": "missing"}))
            continue
        if run.steps_with_samples > len(run.samples):
            text = f"{len(run.samples)} of the {run.steps_with_samples} steps with samples are shown."
            parts.append(element("p", text, {"class": "quiet"}))
        last = max(run.samples)
        for step, shown in sorted(run.samples.items(), reverse=True):
            inner = element("summary", f"step {step}") + _sides(shown, scale)
            parts.append(f"<details{' open' if step == last else ''}>{inner}</details>")
    return "".join(parts)


def _key(scale: float) -> str:
    steps = "".join(
        element("span", f"{scale * share:.2f}", {"style": f"--h:{share * STRONGEST:.2f}"})
        for share in (0, 0.25, 0.5, 0.75, 1)
    )
    return element("p", f"Entropy of each token in nats: {steps} and above", {"class": "scale"})


def _sides(rows: Sequence[Mapping[str, Any]], scale: float) -> str:
    sides = []
    for mode in MODE_NAMES:
        own = [row for row in rows if row.get("mode") == mode]
        inner = element("h4", f"{mode.replace('_', '-')} mode")
        prompts = [str(row.get("prompt", "")) for row in own]
        for place, row in enumerate(own):
            # the prompt once for the responses that share it
            prompt = prompts[place] if place == 0 or prompts[place] != prompts[place - 1] else ""
            inner += _sample(row, prompt, scale)
        if not own:
            inner += element("p", "No sample of this mode at this step.", {"class": "missing"})
        sides.append(element("div", inner))
    other = len([row for row in rows if row.get("mode") not in MODE_NAMES])
    left_out = element("p", f"{other} of an unknown mode left out.", {"class": "missing"}) if other else ""
    return element("div", "".join(sides), {"class": "sides"}) + left_out


def _sample(row: Mapping[str, Any], prompt: str, scale: float) -> str:
    entropies, reward = _entropies(row), number(row.get("reward"))
    facts = [f"reward {reward:.4g}" if reward is not None else "no reward"]
    finite = [value for value in entropies if value is not None]
    if entropies:
        facts.append(f"{len(entropies)} tokens")
    facts.append(f"mean entropy {sum(finite) / len(finite):.3f} nats" if finite else "no entropies")
    inner = _text(escape(prompt), "text prompt") if prompt else ""
    if entropies:
        shown = list(zip(row["tokens"], entropies, strict=True))[:LARGEST_NUMBER_OF_TOKENS]
        inner += _text("".join(_token(str(text), value, scale) for text, value in shown), "text")
        if len(entropies) > len(shown):
            inner += element("p", f"{len(entropies) - len(shown)} more tokens are not shown.", {"class": "missing"})
    else:
        inner += _text(escape(str(row.get("completion", ""))), "text")
    return element("div", inner + element("p", ", ".join(facts), {"class": "quiet"}), {"class": "sample"})


def _text(inner: str, kind: str) -> str:
    return element("div", inner, {"class": kind, "dir": "auto"})


def _token(text: str, entropy: float | None, scale: float) -> str:
    if entropy is None:
        return element("span", escape(text), {"class": "token", "style": "--h:0", "title": "no finite entropy"})
    share = min(max(entropy / scale, 0.0), 1.0) * STRONGEST if scale > 0 else 0.0
    # a token that ends within a character has no text of its own; a thin space keeps its place and its colour
    shown = escape(text) or "\u2009"
    return element("span", shown, {"class": "token", "style": f"--h:{share:.2f}", "title": f"{entropy:.3f} nats"})


def _entropies(row: Mapping[str, Any]) -> list[float | None]:
    """One for each token, empty where tokens and entropies are not of one length."""
    tokens, values = row.get("tokens"), row.get("entropy")
    if not isinstance(tokens, list) or not isinstance(values, list) or len(tokens) != len(values):
        return []
    return [number(value) for value in values]
