"""What a scored rollout says about each of its questions: one number per question, mode and measure."""

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Sequence

import torch
from torch import Tensor

from policy_split.modes import HIGH_ENTROPY, MODE_NAMES, MODES, NORMAL
from policy_split.rollouts.rollout import Rollout

from .diversity import div_bleu, div_ngram
from .statistics import distinct_n, expected_distinct

Key = Callable[[str], Hashable]
NGRAMS = (1, 2, 3)
FEW = 8  # responses, of which the number of different answers is estimated whatever number was drawn
KL_NAMES = {"kl_high_normal": HIGH_ENTROPY, "kl_normal_high": NORMAL}  # name -> the mode whose responses it is over


def question_scores(rollout: Rollout, end_ids: Collection[int], key: Key, correct_reward: float) -> dict[str, Tensor]:
    """Each measure of each question, (P,) float64 on the CPU, named "normal/accuracy", "kl_high_normal" and so on.

    Of each mode, over its own n responses: `accuracy` (mean reward), `correct` (how many have a reward of at least
    correct_reward), `distinct_correct` (different keys of those), `distinct_correct_8` (how many 8 responses are
    expected to have, from 8 responses on), `entropy` (nats, mean over all tokens), `mean_length`
    (tokens, the end of sequence among them), `truncated` (share without an end), `distinct_1`, `distinct_2`,
    `distinct_3` (`distinct_n` over the responses' token ids, without the end), `div_ngram_8` and `div_bleu_8` (see
    `diversity`, from 8 responses on). `kl_high_normal` and `kl_normal_high`:
    the exact KL at each token of the first-named mode's responses, nats, mean over the tokens; where the rollout has
    its divergence.
    """
    own = 2 * rollout.num_prompts * rollout.num_generations  # the first two blocks: what each mode wrote itself
    shape = (2, rollout.num_prompts, rollout.num_generations)
    mask = rollout.mask[:own].view(*shape, -1)
    correct, answers = correct_answers(rollout, key, correct_reward)
    n = rollout.num_generations
    measures = {
        "accuracy": rollout.rewards[:own].view(shape).double().mean(-1),
        "correct": correct.sum(-1),
        "distinct_correct": _per_question(answers, len),
        "entropy": _token_mean(rollout.scores.entropy[:own].view(mask.shape), mask),
        "mean_length": mask.sum(-1).double().mean(-1),
        "truncated": rollout.truncated.view(shape).double().mean(-1),
    }
    if n >= FEW:
        measures["distinct_correct_8"] = _per_question(answers, lambda a: expected_distinct(list(a.values()), n, FEW))
        measures |= {"div_ngram_8": _of_eight(rollout, div_ngram), "div_bleu_8": _of_eight(rollout, div_bleu)}
    measures |= _distinct_ngrams(rollout, end_ids)
    scores = {
        f"{MODE_NAMES[mode]}/{name}": values[mode].double().cpu() for mode in MODES for name, values in measures.items()
    }
    if rollout.divergence is not None:
        divergence = _token_mean(rollout.divergence[:own].view(mask.shape), mask)
        scores |= {name: divergence[mode].cpu() for name, mode in KL_NAMES.items()}
    return scores


def correct_answers(rollout: Rollout, key: Key, correct_reward: float) -> tuple[Tensor, list[Counter[Hashable]]]:
    """Which of each mode's responses are correct (2, P, n) bool, and the keys of those, 2*P counters, mode-major."""
    p, n = rollout.num_prompts, rollout.num_generations
    texts = rollout.texts
    correct = (rollout.rewards[: len(texts)] >= correct_reward).view(2, p, n)
    flags = correct.flatten().tolist()
    groups = [range(start, start + n) for start in range(0, len(texts), n)]
    return correct, [Counter(key(texts[i]) for i in group if flags[i]) for group in groups]


def _per_question(answers: Sequence[Counter[Hashable]], measure: Callable[[Counter[Hashable]], float]) -> Tensor:
    return torch.tensor([measure(each) for each in answers], dtype=torch.float64).view(2, -1)


def _of_eight(rollout: Rollout, measure: Callable[[Sequence[str]], float]) -> Tensor:
    """(2, P): its mean over the responses to a question, eight by eight as they were drawn; what is left over is not
    among them."""
    n, texts = rollout.num_generations, rollout.texts
    places = range(0, n - n % FEW, FEW)
    values = [
        [measure(texts[start + place : start + place + FEW]) for place in places] for start in range(0, len(texts), n)
    ]
    return torch.tensor(values, dtype=torch.float64).mean(1).view(2, -1)


def _distinct_ngrams(rollout: Rollout, end_ids: Collection[int]) -> dict[str, Tensor]:
    n, lengths = rollout.num_generations, rollout.completion_lengths
    ids = rollout.completion_ids[: len(rollout.texts)].tolist()
    responses = [row[:length] for row, length in zip(ids, lengths, strict=False)]
    # every response has the same end: it says nothing about how much they differ
    responses = [tokens[:-1] if tokens[-1] in end_ids else tokens for tokens in responses]
    groups = [responses[start : start + n] for start in range(0, len(responses), n)]
    return {
        f"distinct_{size}": torch.tensor([distinct_n(group, size) for group in groups], dtype=torch.float64).view(2, -1)
        for size in NGRAMS
    }


def _token_mean(values: Tensor, mask: Tensor) -> Tensor:
    """(2, P) means of (2, P, n, T) over the valid tokens of a question; every response has at least one."""
    return (values.double() * mask).sum((2, 3)) / mask.sum((2, 3))
