"""Rows as other frameworks have them, and the four blocks of `dual_mode_advantages`: one into the other.

Frameworks repeat a question 2n times in a row. Here the first n of them are of the normal mode, the others of the
high-entropy mode: R = P * 2n rows, question-major. Each has a twin, the same response under the other mode's prompt.
"""

import torch
from torch import Tensor

from policy_split.modes import MODES


def modes_of_rows(first: int, count: int, num_generations: int) -> list[int]:
    """The mode that writes each of `count` rows from row `first` on, n = num_generations for each mode."""
    return [MODES[row % (2 * num_generations) // num_generations] for row in range(first, first + count)]


def blocks_of(own: Tensor, borrowed: Tensor, num_generations: int) -> Tensor:
    """(2R, ...) in the order of the blocks, of the rows (R, ...) and their twins (R, ...)."""
    return torch.cat((_by_mode(own, num_generations), _by_mode(borrowed, num_generations).flip(0))).flatten(0, 2)


def rows_of(blocks: Tensor, num_generations: int) -> tuple[Tensor, Tensor]:
    """(rows, twins), (R, ...) each: the inverse of `blocks_of`."""
    parts: Tensor = blocks.unflatten(0, (2, len(MODES), -1, num_generations))
    own, borrowed = parts
    return _by_question(own), _by_question(borrowed.flip(0))


def _by_mode(rows: Tensor, n: int) -> Tensor:
    """(2, P, n, ...) of rows (R, ...)."""
    if len(rows) % (len(MODES) * n):
        raise ValueError(f"{len(rows)} rows are not whole questions of {len(MODES)} x {n} responses")
    questions: Tensor = rows.unflatten(0, (-1, len(MODES), n))
    return questions.transpose(0, 1)


def _by_question(rows: Tensor) -> Tensor:
    return rows.transpose(0, 1).flatten(0, 2)
