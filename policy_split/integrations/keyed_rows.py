"""Rows of verl's trainer, by their keys, as the blocks of `dual_mode_advantages`: no verl in here.

A key is `{uid}_{session}_{index}`: a question's 2n sessions are its responses, the first n of them of the normal mode;
index 1 is the response behind its writer's prompt, index 0 the same token ids behind the other mode's.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from policy_split.algorithms.advantages import dual_mode_advantages
from policy_split.integrations.interleaved import blocks_of, rows_of

TWIN, OWN = 0, 1  # as the agent loop returns them: verl grades the last


class Place(NamedTuple):
    uid: str
    session: int
    number: int


def place_of(key: str) -> Place:
    """What a key says; ValueError for one of another form."""
    parts = key.rsplit("_", 2)
    if len(parts) != 3 or not (parts[1].isdigit() and parts[2].isdigit()):
        raise ValueError(f"the key {key!r} is not of the form uid_session_index")
    return Place(parts[0], int(parts[1]), int(parts[2]))


def order_of(keys: Sequence[str], num_sessions: int) -> tuple[list[int], list[int]]:
    """(rows, twins): places among the keys, question-major, session by session.

    ValueError if num_sessions is odd, or a question does not have each session twice.
    """
    if num_sessions < 2 or num_sessions % 2:
        raise ValueError(f"rollout.n={num_sessions} must be even: half of the responses for each mode")
    questions: dict[str, dict[tuple[int, int], int]] = {}
    for row, key in enumerate(keys):
        uid, session, index = place_of(key)
        questions.setdefault(uid, {})[session, index] = row
    rows: dict[int, list[int]] = {OWN: [], TWIN: []}
    for uid, found in questions.items():
        wanted = {(session, index) for session in range(num_sessions) for index in rows}
        if found.keys() != wanted:
            raise ValueError(
                f"question {uid} has {len(found)} rows, expected {num_sessions} responses under both prompts; "
                f"is actor_rollout_ref.rollout.agent.default_agent_loop=policy_split?"
            )
        for index, places in rows.items():
            places += [found[session, index] for session in range(num_sessions)]
    return rows[OWN], rows[TWIN]


def policy_split_advantages(
    keys: Sequence[str],
    rewards: Tensor,  # (B,) of each row's response; those of twins are not read
    logprobs: Tensor,  # (B, T) old log-probs, nats
    mask: Tensor,  # (B, T)
    *,
    num_sessions: int,
    **options: Any,
) -> Tensor:
    """Advantages (B, T) of each row by `dual_mode_advantages`, whose options these are, in the order of the keys.

    num_sessions: 2n, responses to a question. Raises what `order_of` and `dual_mode_advantages` raise.
    Source: arXiv 2604.11510, eq. 3-6.
    """
    own, twin = order_of(keys, num_sessions)
    n = num_sessions // 2
    blocks = blocks_of(logprobs[own], logprobs[twin], n), blocks_of(mask[own], mask[twin], n)
    of_blocks, _ = dual_mode_advantages(
        blocks_of(rewards[own], rewards[own], n), *blocks,
        num_prompts=len(own) // num_sessions, num_generations=n, **options,
    )  # fmt: skip
    advantages = torch.zeros_like(of_blocks)
    advantages[own], advantages[twin] = rows_of(of_blocks, n)
    return advantages
