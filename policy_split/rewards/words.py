"""Reward of the words task: words used x form x fluency, the last as a frozen reference model sees it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

import torch

from policy_split.config import PolicySplitConfig
from policy_split.models.fluency import mean_logprobs
from policy_split.models.policy import Policy, load_model, load_tokenizer, placed
from policy_split.models.source import check_source
from policy_split.words.questions import NAME
from policy_split.words.sentence import MOST_WORDS, fault_of, used_words

# Mean log-probs, nats per token, to SmolLM2-135M-Instruct: sentences begin at -5, word salad ends at -5.7.
SALAD, FLUENT = -6.0, -4.0


class WordsReward:
    """`WordsReward("HuggingFaceTB/SmolLM2-135M-Instruct")`, of completions and their rows' column `forms`.

    The share of the words that are used (`used_words`), times 1 for one short sentence of at most `most_words` words or
    0 for anything else (`fault_of`), times fluency: 0 up to `salad` nats per token, 1 from `fluent` on, a line between.
    Above that a more probable sentence is worth no more: the reward asks for sense, not for the likeliest words. The
    reference is loaded when the first sentence is to be graded; None: fluency counts 1 always, and word salad passes.
    Raises ValueError or FileNotFoundError for a reference that is no model.
    """

    __name__ = NAME

    def __init__(
        self,
        reference: str | None,
        *,
        salad: float = SALAD,
        fluent: float = FLUENT,
        most_words: int = MOST_WORDS,
        use_cpu: bool = False,
    ):
        if not salad < fluent:
            raise ValueError(f"salad={salad} must be below fluent={fluent}")
        if reference is not None:
            check_source(reference)
        self.reference, self.salad, self.fluent, self.most_words = reference, salad, fluent, most_words
        self.device = "cuda" if torch.cuda.is_available() and not use_cpu else "cpu"
        self._policy: Policy | None = None

    def __call__(
        self,
        completions: Sequence[Any],
        forms: Sequence[Sequence[Sequence[str]]],
        log_metric: Callable[[str, float], None] | None = None,
    ) -> list[float]:
        texts = [each if isinstance(each, str) else each[-1]["content"] for each in completions]
        used = [sum(found) / len(found) for found in map(used_words, texts, forms)]
        formed = [fault_of(text, each, self.most_words) is None for text, each in zip(texts, forms, strict=True)]
        graded = list(dict.fromkeys(text for text, u, f in zip(texts, used, formed, strict=True) if u and f))
        fluency = dict(zip(graded, self.fluency(graded), strict=True))
        if log_metric is not None and texts:
            log_metric("words/used", sum(used) / len(texts))
            log_metric("words/form", sum(formed) / len(texts))
            if graded:
                log_metric("words/fluency", sum(fluency.values()) / len(graded))
        return [u * f * fluency.get(text, 0.0) for text, u, f in zip(texts, used, formed, strict=True)]

    def fluency(self, texts: Sequence[str]) -> list[float]:
        """0 to 1 of each text, whatever its form."""
        if self.reference is None or not texts:
            return [1.0] * len(texts)
        if self._policy is None:
            model = placed(load_model(self.reference, PolicySplitConfig()), self.device).eval().requires_grad_(False)
            self._policy = Policy(model, load_tokenizer(None, self.reference), share=None)
        means = mean_logprobs(self._policy, texts)
        return [min(1.0, max(0.0, (mean - self.salad) / (self.fluent - self.salad))) for mean in means]


def words_reward(spec: str) -> WordsReward:
    """What "words?reference=MODEL&salad=-6&fluent=-4&most_words=16" names; ValueError for anything else."""
    given: dict[str, Any] = {}
    for part in filter(None, spec.partition("?")[2].split("&")):
        key, _, value = part.partition("=")
        if key not in READERS or key in given:
            raise ValueError(f"reward {spec!r}: {part!r} must be one of {', '.join(READERS)}, =value, each once")
        try:
            given[key] = READERS[key](unquote(value))
        except ValueError:
            raise ValueError(f"reward {spec!r}: {key}={value} must be a number") from None
    if "reference" not in given:
        raise ValueError(f"reward {spec!r} needs a model that judges fluency, such as {NAME}?reference=MODEL")
    return WordsReward(given.pop("reference"), **given)


READERS: Mapping[str, Callable[[str], Any]] = {
    "reference": str,
    "salad": float,
    "fluent": float,
    "most_words": int,
}
