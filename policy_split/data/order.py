"""Which questions a step asks: a function of (seed, step) alone, so that a resumed run asks what it would have."""

from .datasets import question_indices
from .rows import Questions


class QuestionOrder:
    """One seeded permutation per pass over the rows; fresh: over the different questions, rows of one prompt being one.

    With `fresh`, no question comes a second time before each has come once; of its rows each pass takes another.
    """

    def __init__(self, dataset: Questions, fresh: bool):
        self.questions = [[row] for row in range(len(dataset))]
        if fresh:
            by_prompt: dict[str, list[int]] = {}
            for row, prompt in enumerate(dataset["prompt"]):
                by_prompt.setdefault(repr(prompt), []).append(row)
            self.questions = list(by_prompt.values())

    def rows(self, seed: int, step: int, prompts_per_step: int) -> list[int]:
        """Of the questions of a step, from 0."""
        size, first = len(self.questions), step * prompts_per_step
        chosen = question_indices(size, seed, step, prompts_per_step)
        rows = []
        for position, question in enumerate(chosen, first):
            same = self.questions[question]
            rows.append(same[position // size % len(same)])
        return rows
