"""One rollout: n responses of each mode to each question, shared into four blocks by token ids, graded and scored."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import TrainerState

from policy_split.config import PolicySplitConfig
from policy_split.models.batches import Batch, PackedBatch, PaddedBatch
from policy_split.models.policy import Policy
from policy_split.models.shared_prompts import SharedPromptBatch
from policy_split.modes import HIGH_ENTROPY, MODE_NAMES, MODES, NORMAL, encode_modes
from policy_split.progress import track
from policy_split.rewards.context import RewardContext
from policy_split.rewards.loading import RewardFunction
from policy_split_kernels.divergence import mode_divergence
from policy_split_kernels.linear import linear_logprobs_and_entropy
from policy_split_kernels.logprobs import logprobs_and_entropy

from .answering import Answering, Answers, answer_by_halves, answer_by_need
from .engine import RolloutEngine
from .micro_batches import micro_batches
from .sampling import left_padded

# (mode of the prompt, half of the responses): the first block of each half is that of the prompt that wrote it.
# Each mode writes a half, and both halves are scored under both prompts: the order that dual_mode_advantages expects.
BLOCKS = ((NORMAL, NORMAL), (HIGH_ENTROPY, HIGH_ENTROPY), (NORMAL, HIGH_ENTROPY), (HIGH_ENTROPY, NORMAL))
# One policy, of the normal prompt, which writes both halves.
SINGLE_BLOCKS = ((NORMAL, 0), (NORMAL, 1))


class Scores(NamedTuple):
    logprobs: Tensor  # (4*P*n, T) nats
    entropy: Tensor  # (4*P*n, T) nats
    divergence: Tensor | None = None  # (4*P*n, T) nats, KL(own mode || other mode)


@dataclass
class Rollout:
    """P*n rows for each of its blocks, question-major inside a block; the first two are own prompts' responses, unless
    `writer` says otherwise.

    The shapes below are those of BLOCKS, four of them; with SINGLE_BLOCKS there are 2*P*n rows.
    """

    num_prompts: int  # P
    num_generations: int  # n
    prompt_ids: Tensor  # (4*P*n, L) padded on the left
    completion_ids: Tensor  # (4*P*n, T) as sampled, with the end of sequence, padded on the right
    prompt_lengths: list[int]  # (4*P*n,)
    completion_lengths: list[int]  # (4*P*n,)
    mode: Tensor  # (4*P*n,) of the row's prompt
    mask: Tensor  # (4*P*n, T) bool: the tokens of the response, its end of sequence among them
    train_mask: Tensor  # (4*P*n, T) bool: those that train
    truncated: Tensor  # (2*P*n,) bool: the response was cut before its end
    rewards: Tensor  # (4*P*n,) NaN where no reward function had one
    texts: list[str]  # (2*P*n,) decoded for the rewards and for people; nothing is computed from them
    logprobs: Tensor | None = None  # (4*P*n, T) nats, filled by `score_rollout`
    sampler_logprobs: Tensor | None = None  # (2*P*n, T) nats, of the engine that drew the responses; None: the model
    entropy: Tensor | None = None  # (4*P*n, T) nats, filled by `score_rollout`
    divergence: Tensor | None = None  # (4*P*n, T) nats, KL(own mode || other mode), filled if config.exact_kl
    graded: Tensor | None = None  # (4*P*n,) bool: which rows have a reward, and so train; None: all
    context: RewardContext = field(default_factory=RewardContext)  # what the rewards were given and wrote down
    score_weight: Tensor | None = None  # (4*P*n,) rows that a row's scores stand for in the metrics; None: 1 each
    blocks: tuple[tuple[int, int], ...] = BLOCKS
    writer: Tensor | None = None  # (2*P*n,) the mode that wrote each response; None: that of its half
    share_prompts: bool = False  # whether rows of one question and mode stand behind one copy of their prompt

    @property
    def scores(self) -> Scores:
        """What its policy thinks of it; ValueError before `score_rollout`."""
        if self.logprobs is None or self.entropy is None:
            raise ValueError("the rollout has no scores yet: call score_rollout first")
        return Scores(self.logprobs, self.entropy, self.divergence)

    @property
    def shared(self) -> bool:
        """Whether every response stands under both prompts."""
        return self.blocks == BLOCKS

    @property
    def own_rows(self) -> Tensor:
        """(2*P*n,) the row of each response under the prompt that wrote it."""
        rows = torch.arange(len(self.texts), device=self.mode.device)
        return rows if self.writer is None else torch.where(self.mode[rows] == self.writer, rows, self.twins(rows))

    @property
    def own(self) -> Tensor | None:
        """(4*P*n,) bool: those rows; None: the first half of all."""
        if self.writer is None:
            return None
        return torch.zeros_like(self.mode, dtype=torch.bool).index_fill(0, self.own_rows, True)

    def twins(self, rows: Tensor) -> Tensor:
        """The rows of the same responses under the other prompt, where they are shared: block 3 - k is that of k."""
        size = self.num_prompts * self.num_generations
        block: Tensor = rows // size
        return (3 - 2 * block) * size + rows

    def by_question(self, values: Tensor) -> Tensor:
        """(P, 2*n) of one number for each response."""
        return values.view(2, self.num_prompts, -1).transpose(0, 1).flatten(1)

    def response(self, row: int) -> int:
        """Which of the 2*P*n texts stands in the row."""
        block, place = divmod(row, self.num_prompts * self.num_generations)
        return self.blocks[block][1] * self.num_prompts * self.num_generations + place

    def pair(self, response: int) -> list[int]:
        """The two rows of a response: under the normal prompt, then under the high-entropy one."""
        writer, place = divmod(response, self.num_prompts * self.num_generations)
        return [BLOCKS.index((mode, writer)) * self.num_prompts * self.num_generations + place for mode in MODES]

    def batch(self, rows: Sequence[int], *, packed: bool = False) -> Batch:
        """Some rows as one forward of a model."""
        arguments = (rows, self.prompt_ids, self.completion_ids, self.prompt_lengths, self.completion_lengths)
        if self.share_prompts:
            return SharedPromptBatch(*arguments, self.prompts)
        return PackedBatch(*arguments) if packed else PaddedBatch(*arguments)

    @cached_property
    def prompts(self) -> list[int]:
        """A number for the mode and question of each row: rows of the same have the same prompt."""
        p, n = self.num_prompts, self.num_generations
        return [mode * p + question for mode, _ in self.blocks for question in range(p) for _ in range(n)]

    def responses(self, tokenizer: Any) -> Iterator[dict[str, Any]]:
        """Each response once, for people: mode, prompt, completion, reward, and the columns that rewards logged."""
        for text, row in enumerate(self.own_rows.tolist()):
            prompt = self.prompt_ids[row, self.prompt_ids.shape[1] - self.prompt_lengths[row] :]
            yield {
                "mode": MODE_NAMES[int(self.mode[row])],
                "prompt": tokenizer.decode(prompt.tolist()),
                "completion": self.texts[text],
                "reward": self.reward(row),
                **{name: values[text] for name, values in self.context.columns.items()},
            }

    def reward(self, row: int) -> float | None:
        """For people: None where there is none."""
        reward = float(self.rewards[row])
        return None if math.isnan(reward) else reward


def make_rollout(
    policy: Policy,
    questions: Sequence[Mapping[str, Any]],
    functions: Sequence[tuple[RewardFunction, float]],
    config: PolicySplitConfig,
    *,
    num_generations: int,
    seed: int,
    blocks: tuple[tuple[int, int], ...] = BLOCKS,
    by_need: bool = False,  # the high-entropy mode writes more of the responses: see `answer_by_need`
    state: TrainerState | None = None,  # of reward functions
    engine: RolloutEngine | None = None,  # with the policy's weights; None: the policy itself draws
) -> Rollout:
    """Draw `num_generations` responses of each half to each question, grade each once, and lay out the blocks.

    A function of policy, questions and seed: the global random state is kept. Raises what `encode_modes`
    and `compute_rewards` raise. Source: arXiv 2604.11510 section 3, rollout sharing.
    """
    prompts = [encode_modes(policy.tokenizer, q["prompt"], config, f"prompt {q['prompt']!r}") for q in questions]
    answering = Answering(policy, questions, prompts, functions, config, state, engine)
    if by_need:
        answers = answer_by_need(answering, num_generations, seed)
    else:
        answers = answer_by_halves(answering, [mode for mode, _ in blocks[:2]], num_generations, seed)
    by_mode = [prompt[mode] for mode in MODES for prompt in prompts]
    return _laid_out(policy, by_mode, answers, blocks, config)


def score_rollout(
    policy: Policy, rollout: Rollout, config: PolicySplitConfig, rows: Sequence[int] | None = None
) -> None:
    """Fills what the rollout's policy thinks of it: logprobs, entropy and, if config.exact_kl, divergence.

    Of some rows alone if they are given, with 0 in all others.
    """
    batches = micro_batches(rollout, range(len(rollout.mode)) if rows is None else rows, config)
    scores = score(policy, rollout, batches, config.temperature, divergence=config.exact_kl)
    rollout.logprobs, rollout.entropy, rollout.divergence = scores


@torch.no_grad()
def score(
    policy: Policy, rollout: Rollout, batches: Sequence[Sequence[int]], temperature: float, *, divergence: bool = False
) -> Scores:
    """Scores of every row under its own prompt, 0 behind the end of a response; the divergence needs paired batches.

    The update must use the same micro-batches for ratios of exactly 1: sums of other shapes round differently.
    """
    scores = [torch.zeros(rollout.mask.shape, device=rollout.mask.device) for _ in range(3 if divergence else 2)]
    for rows in track(batches, "scoring"):
        batch = rollout.batch(rows, packed=policy.packed)
        mask = batch.gather(rollout.mask)
        options: dict[str, Any] = {"temperature": temperature, "mask": mask}
        options["targets"] = batch.gather(rollout.completion_ids)
        if policy.fused and not divergence:
            head_fn = partial(linear_logprobs_and_entropy, chunk_bytes=policy.chunk_bytes, **options)
            values = list(policy.completion_head(batch, head_fn))
        else:
            values = logits_scores(policy.completion_logits(batch), **options, divergence=divergence)
        for number, value in enumerate(values):
            scores[number] = scores[number].to(value.dtype)  # float64 models keep their precision
            scores[number][batch.index, : batch.length] = batch.scatter(value)
    return Scores(*scores)


@torch.no_grad()
def logits_scores(
    logits: Tensor, targets: Tensor, temperature: float, mask: Tensor, *, divergence: bool
) -> list[Tensor]:
    """Log-probs, entropy and, of paired rows, the divergence of a batch's logits."""
    values = list(logprobs_and_entropy(logits, targets, temperature=temperature, mask=mask))
    if divergence:
        exact = mode_divergence(*logits.chunk(2), temperature=temperature, mask=mask.chunk(2)[0])
        values.append(torch.cat((exact.kl_ab, exact.kl_ba)))
    return values


def _laid_out(
    policy: Policy,
    prompts: Sequence[list[int]],  # (2*P,) mode-major
    answers: Answers,  # (2*P*n,) of the first half, then the second; question-major
    blocks: tuple[tuple[int, int], ...],
    config: PolicySplitConfig,
) -> Rollout:
    completion_ids, lengths, truncated, sampler_logprobs, grades, writer = answers
    p, device = len(prompts) // 2, completion_ids.device
    n = len(lengths) // len(prompts)
    prompt_modes, halves = (torch.tensor(numbers, device=device) for numbers in zip(*blocks, strict=True))
    prompt_ids, _ = left_padded(prompts, policy)
    prompt_ids = prompt_ids.view(2, p, -1)[prompt_modes].repeat_interleave(n, 1).flatten(0, 1)

    def shared(x: Tensor) -> Tensor:
        return x.view(2, p * n, *x.shape[1:])[halves].flatten(0, 1)

    steps = torch.arange(completion_ids.shape[1], device=device)
    mask = steps < torch.tensor(lengths, device=device)[:, None]
    train_mask = mask & ~truncated[:, None] if config.mask_truncated_completions else mask
    graded = torch.tensor([not math.isnan(reward) for reward in grades.rewards], device=device)
    if grades.left_out:
        train_mask = train_mask & graded[:, None]
    return Rollout(
        num_prompts=p,
        num_generations=n,
        prompt_ids=prompt_ids,
        completion_ids=shared(completion_ids),
        prompt_lengths=[
            len(prompts[mode * p + question]) for mode, _ in blocks for question in range(p) for _ in range(n)
        ],
        completion_lengths=[length for _, half in blocks for length in lengths[half * p * n : (half + 1) * p * n]],
        mode=prompt_modes.repeat_interleave(p * n),
        mask=shared(mask),
        train_mask=shared(train_mask),
        truncated=truncated,
        rewards=shared(torch.tensor(grades.rewards, dtype=torch.float32, device=device)),
        graded=shared(graded) if grades.left_out else None,
        context=grades.context,
        texts=grades.texts,
        blocks=blocks,
        writer=writer,
        sampler_logprobs=sampler_logprobs,
        share_prompts=policy.share,
    )
