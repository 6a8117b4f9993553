"""The responses of a rollout: drawn, cut at their ends and graded, each once; who writes which."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import TrainerState

from policy_split.config import PolicySplitConfig
from policy_split.models.policy import Policy
from policy_split.modes import HIGH_ENTROPY, MODES, NORMAL
from policy_split.rewards.context import RewardContext
from policy_split.rewards.loading import RewardFunction

from .engine import RolloutEngine, draw
from .grading import Grades, grade
from .sampling import seed_of, until_end


class Answers(NamedTuple):
    """R responses."""

    ids: Tensor  # (R, T) padded on the right
    lengths: list[int]  # (R,) with the end of sequence
    truncated: Tensor  # (R,) bool: no end came
    sampler_logprobs: Tensor | None  # (R, T) nats, of an engine
    grades: Grades
    writer: Tensor | None = None  # (R,) the mode that wrote each; None: the halves' own


@dataclass(frozen=True)
class Answering:
    """What draws and grades: one of these for a rollout."""

    policy: Policy
    questions: Sequence[Mapping[str, Any]]
    prompts: Sequence[Sequence[list[int]]]  # (P, 2) token ids of each question in each mode
    functions: Sequence[tuple[RewardFunction, float]]
    config: PolicySplitConfig
    state: TrainerState | None
    engine: RolloutEngine | None

    def answers(self, asked: Sequence[tuple[int, int]], seed: int) -> Answers:
        """One response to each (question, mode). Raises what `compute_rewards` raises."""
        prompts = [self.prompts[question][mode] for question, mode in asked]
        completions, logprobs = draw(self.policy, prompts, self.config, seed, self.engine)
        ids, lengths, truncated = until_end(completions, self.policy)
        texts = [row[:length] for row, length in zip(ids.tolist(), lengths, strict=True)]
        questions = [question for question, _ in asked]
        arguments = (self.policy.tokenizer, self.questions, questions, texts, self.functions, self.config, self.state)
        return Answers(ids, lengths, truncated, logprobs, grade(*arguments))


def answer_by_halves(answering: Answering, modes: Sequence[int], n: int, seed: int) -> Answers:
    """n responses of each half's mode to each question: half by half, question by question."""
    count = len(answering.questions)
    return answering.answers([(question, mode) for mode in modes for question in range(count) for _ in range(n)], seed)


def answer_by_need(answering: Answering, n: int, seed: int) -> Answers:
    """The same number, in the same places, of which the high-entropy mode writes more where `writers_by_need` says so.

    In two draws: the first n responses of the high-entropy mode and some of the normal mode's, then the others.
    """
    p, first = len(answering.questions), first_of(n)
    early = [(question, NORMAL, place) for question in range(p) for place in range(first)]
    early += [(question, HIGH_ENTROPY, place) for question in range(p) for place in range(n)]
    answers = answering.answers([(question, mode) for question, mode, _ in early], seed)
    writer = writers_by_need(torch.tensor(answers.grades.rewards[: p * first]).view(p, first), n)  # (2, P, n)
    late = [(question, place) for question in range(p) for place in range(first, n)]
    if late:
        asked = [(question, int(writer[NORMAL, question, place])) for question, place in late]
        answers = _joined(answers, answering.answers(asked, seed_of(seed, "rest")))
    half = {mode: mode * p * n for mode in MODES}
    places = [half[mode] + question * n + place for question, mode, place in early]
    places += [half[NORMAL] + question * n + place for question, place in late]
    return _ordered(answers, places)._replace(writer=writer.flatten().to(answers.ids.device))


def first_of(n: int) -> int:
    """How many of the normal mode's n responses to a question decide about the others: half of them, two at least."""
    return min(n, max(2, (n + 1) // 2))


def writers_by_need(rewards: Tensor, n: int) -> Tensor:
    """Who writes the 2n responses to each question: the rewards (P, k) of the first k of the normal mode ->
    (2, P, n) modes, those that are the normal mode's by right, then the high-entropy mode's.

    Where the k rewards are all equal, the other n - k are the high-entropy mode's; NaN, no reward, is left out.
    """
    k = rewards.shape[1]
    low, high = (torch.where(rewards.isnan(), bound, rewards) for bound in (math.inf, -math.inf))
    dead = high.amax(1) <= low.amin(1)
    writer = torch.tensor(MODES)[:, None, None].repeat(1, len(rewards), n)
    writer[NORMAL, dead, k:] = HIGH_ENTROPY
    return writer


def _joined(one: Answers, other: Answers) -> Answers:
    width = max(one.ids.shape[1], other.ids.shape[1])

    def both(left: Tensor, right: Tensor) -> Tensor:
        return torch.cat([torch.nn.functional.pad(x, (0, width - x.shape[1])) for x in (left, right)])

    logprobs = None
    if one.sampler_logprobs is not None and other.sampler_logprobs is not None:
        logprobs = both(one.sampler_logprobs, other.sampler_logprobs)
    (texts, rewards, context), (more_texts, more_rewards, more) = one.grades, other.grades
    counts = (len(texts), len(more_texts))
    columns = {
        name: [
            value
            for each, count in zip((context, more), counts, strict=True)
            for value in each.columns.get(name, [None] * count)
        ]
        for name in {**context.columns, **more.columns}
    }
    metrics = {
        name: context.metrics.get(name, []) + more.metrics.get(name, []) for name in {**context.metrics, **more.metrics}
    }
    context = RewardContext(context.trainer_state, columns, metrics)
    grades = Grades([*texts, *more_texts], [*rewards, *more_rewards], context)
    truncated = torch.cat((one.truncated, other.truncated))
    return Answers(both(one.ids, other.ids), one.lengths + other.lengths, truncated, logprobs, grades)


def _ordered(answers: Answers, places: Sequence[int]) -> Answers:
    """Each response at its place."""
    order = sorted(range(len(places)), key=places.__getitem__)
    texts, rewards, context = answers.grades
    columns = {name: [values[i] for i in order] for name, values in context.columns.items()}
    grades = Grades(
        [texts[i] for i in order],
        [rewards[i] for i in order],
        RewardContext(context.trainer_state, columns, context.metrics),
    )
    logprobs = None if answers.sampler_logprobs is None else answers.sampler_logprobs[order]
    lengths = [answers.lengths[i] for i in order]
    return Answers(answers.ids[order], lengths, answers.truncated[order], logprobs, grades)
