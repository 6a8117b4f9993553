"""What both modes wrote to one question, token by token with its entropy: the rows of samples.jsonl, for people."""

import math
from collections.abc import Sequence
from typing import Any

from policy_split.modes import MODE_NAMES, MODES

from .rollout import Rollout

REPLACEMENT = "\ufffd"  # what a decoder puts where bytes are no character, or not yet
LONGEST_CHARACTER = 4  # bytes of the longest character in UTF-8, so tokens that can wait for its end


def sample_rows(rollout: Rollout, tokenizer: Any, step: int, limit: int) -> list[dict[str, Any]]:
    """At most `limit` responses of each mode to the rollout's first question, the normal mode's first.

    Each is {"step", "mode", "prompt", "completion", "reward", "tokens": the text of each token, special ones among
    them, "entropy": nats, of the distribution that each token was drawn from, rounded to 1e-4, None where it is not
    finite}. The texts are for people: nothing is computed from them. Raises ValueError for a rollout that
    `score_rollout` has not filled, and for a limit below 1.
    """
    if limit < 1:
        raise ValueError(f"limit={limit} must be at least 1")
    if rollout.entropy is None:
        raise ValueError("the rollout has no entropy yet: call score_rollout first")
    rows = []
    first = rollout.by_question(rollout.own_rows)[0]  # the rows of what was written to the first question
    for mode in MODES:
        for row in first[rollout.mode[first] == mode][:limit].tolist():
            length = rollout.completion_lengths[row]
            prompt = rollout.prompt_ids[row, rollout.prompt_ids.shape[1] - rollout.prompt_lengths[row] :]
            rows.append(
                {
                    "step": step,
                    "mode": MODE_NAMES[mode],
                    "prompt": tokenizer.decode(prompt.tolist()),
                    "completion": rollout.texts[rollout.response(row)],
                    "reward": rollout.reward(row),
                    "tokens": token_texts(tokenizer, rollout.completion_ids[row, :length].tolist()),
                    "entropy": [_rounded(value) for value in rollout.entropy[row, :length].tolist()],
                }
            )
    return rows


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text that each token adds: joined, they are the decoded response.

    A character of several tokens stands at its last one and the others are empty. Every token is decoded behind the few
    before it, because a decoder may drop the space of a first token; never behind all of them, which would take a time
    that grows with the square of the length.
    """
    texts: list[str] = []
    context, start = 0, 0  # ids[context:start] are written and give the decoder its context
    for end in range(1, len(ids) + 1):
        before, after = tokenizer.decode(ids[context:start]), tokenizer.decode(ids[context:end])
        unfinished = after.endswith(REPLACEMENT) and end - start < LONGEST_CHARACTER and end < len(ids)
        if unfinished:
            texts.append("")
            continue
        texts.append(after[len(before) :])
        context, start = start, end
    return texts


def _rounded(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None
